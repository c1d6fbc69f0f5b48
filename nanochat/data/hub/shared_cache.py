"""The cache of downloads that other tools share (`HF_HUB_CACHE`): which files of a data set it holds.

It is only read. Its files are named by their digests, so they can be verified before they are used.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nanochat.data.hub.hub_source import is_commit
from nanochat.data.hub.listing import Listing, RemoteFile, remote_file

_SHA256_DIGITS, _SHA1_DIGITS = 64, 40


def list_cached_files(repository: str, revision: str) -> Listing | None:
    """Return the files of a data set as the cache knows them, without the network; None if it has none of them.

    A download of the whole data set stores the complete list. Otherwise the list has the files that are in the cache.
    """
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, HFValidationError

    try:
        folder = cache_folder(repository)
        commit = revision if is_commit(revision) else (folder / "refs" / revision).read_text().strip()
        files = get_cached_repo_tree(repository, repo_type="dataset", revision=commit)
    except CachedRepoTreeNotFoundError:
        found = tuple(_snapshot_files(folder / "snapshots" / commit))
        return Listing(commit, found, is_complete=False) if found else None
    except (OSError, HFValidationError):
        return None
    return Listing(commit, tuple(map(remote_file, files)))


def find_cached_file(repository: str, commit: str, file: RemoteFile) -> Path | None:
    """Return the path in the cache of a file of a data set, which is not verified yet; None if it is not there.

    The same content under another commit counts too.
    """
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, file.path, revision=commit, repo_type="dataset")
    blob = cache_folder(repository) / "blobs" / file.digest
    paths = (Path(found), blob) if isinstance(found, str) else (blob,)
    return next((path for path in paths if path.is_file() and path.stat().st_size == file.size), None)


def cache_folder(repository: str) -> Path:
    """Return the folder that the cache has, or would have, for a data set."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="dataset")


def _snapshot_files(folder: Path) -> Iterator[RemoteFile]:
    """Yield the files of a snapshot. Each is a link to a file whose name is its digest."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and path.is_file():
            digest, name = path.readlink().name, path.relative_to(folder).as_posix()
            if len(digest) == _SHA256_DIGITS:
                yield RemoteFile(name, path.stat().st_size, "sha256", digest)
            elif len(digest) == _SHA1_DIGITS:
                yield RemoteFile(name, path.stat().st_size, "git-sha1", digest)
