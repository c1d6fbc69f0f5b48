"""The cache of downloads that other tools share (`HF_HUB_CACHE`): which files of a data set it holds.

It is only read. Its files are named by their digests, so they can be verified before they are used.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.data.hub.hub_source import is_commit
from nanochat.data.hub.listing import Listing, RemoteFile, UnusableListingError
from nanochat.errors import PreflightError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

_SHA256_DIGITS, _SHA1_DIGITS = 64, 40


def list_cached_files(repository: str, revision: str) -> Listing | None:
    """Return the files of a data set as the cache knows them, without the network; None if it has none of them.

    A download of the whole data set stores the complete list. Otherwise the list has the files that are in the cache.
    """
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    folder = cache_folder(repository)
    try:
        commit = revision if is_commit(revision) else (folder / "refs" / revision).read_text().strip()
        if not is_commit(commit):
            return None
        try:
            files = get_cached_repo_tree(repository, repo_type="dataset", revision=commit)
        except CachedRepoTreeNotFoundError:
            found = tuple(_snapshot_files(folder / "snapshots" / commit))
            return Listing(commit, found, is_complete=False) if found else None
        return Listing(commit, tuple(map(_remote_file, files)))
    except UnusableListingError as error:
        raise PreflightError(f"hf://datasets/{repository}: the cache {folder} is refused: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # damaged, or of another form
        return None


def find_cached_file(repository: str, commit: str, file: RemoteFile) -> Path | None:
    """Return the path in the cache of a file of a data set, which is not verified yet; None if it is not there.

    The same content under another commit counts too. Links that leave the cache are not followed.
    """
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, file.path, revision=commit, repo_type="dataset")
    folder = cache_folder(repository)
    blob = folder / "blobs" / file.digest
    roots = (folder.resolve(), blob.parent.resolve())
    for path in (Path(found), blob) if isinstance(found, str) else (blob,):
        is_inside = any(path.resolve().is_relative_to(root) for root in roots)
        if is_inside and path.is_file() and path.stat().st_size == file.size:
            return path
    return None


def cache_folder(repository: str) -> Path:
    """Return the folder that the cache has, or would have, for a data set."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="dataset")


def _remote_file(file: RepoFile) -> RemoteFile:
    if file.lfs is not None:
        return RemoteFile(file.path, file.lfs.size, "sha256", file.lfs.sha256)
    return RemoteFile(file.path, file.size, "git-sha1", file.blob_id)


def _snapshot_files(folder: Path) -> Iterator[RemoteFile]:
    """Yield the files of a snapshot. Each is a link to a file whose name is its digest."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and path.is_file():
            digest, name = path.readlink().name, path.relative_to(folder).as_posix()
            if len(digest) == _SHA256_DIGITS:
                yield RemoteFile(name, path.stat().st_size, "sha256", digest)
            elif len(digest) == _SHA1_DIGITS:
                yield RemoteFile(name, path.stat().st_size, "git-sha1", digest)
