"""Data sets of the Hugging Face hub, downloaded to `<base>/hub` and verified.

A download has the files of one commit. Its manifest is written last, and only the manifest shows that the download is
complete. Without the network, only complete downloads are read, and those of other tools. The commit that a branch or
tag last named is kept beside them. Not here: which split or column is read, and the lock files of recipes.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

from nanochat.data.files.selection.data_file import DataFile
from nanochat.data.files.selection.file_selection import FileSelection
from nanochat.data.hub.access import endpoint, read_token
from nanochat.data.hub.download import download
from nanochat.data.hub.hub_source import HubSource, is_commit
from nanochat.data.hub.shared_cache import find_cached_file, list_cached_files
from nanochat.data.hub.stored_commits import MANIFESTS, REVISIONS, parts_folder, repository_folder
from nanochat.data.hub.wanted_files import WantedFiles, check_cached, find_wanted_files
from nanochat.data.places.connection import is_offline
from nanochat.data.places.manifest import Manifest, StoredFile, check_files, read_manifest, write_manifest
from nanochat.data.places.transfer import Progress, check_room
from nanochat.errors import PreflightError
from nanochat.storage.files import delete_leftovers, exclusive, make_folder, write_text


@dataclass(frozen=True)
class Snapshot:
    """A complete download: its commit, its files, and the paths of other matching files with the reason for each."""

    commit: str
    files: tuple[DataFile[Path], ...]
    left_out: tuple[tuple[Path, str], ...]
    notes: tuple[str, ...]


def cached(source: HubSource, selection: FileSelection, *, base: Path, are_loaded: bool = False) -> Snapshot:
    """Return the complete download of a source, without the network.

    A file whose size or modification time has changed is compared with its digest, and all files if they are about to
    be loaded.

    Raises:
        PreflightError: there is no complete download; the message names what is missing or damaged.
    """
    folder, commit = repository_folder(source, base), known_commit(source, base=base)
    manifest = read_manifest(_manifest(source, commit or "", selection, base))
    if manifest is None or commit is None or manifest.details.get("commit") != commit:
        raise PreflightError(
            f"{source.describe()} is not downloaded under {folder}; run once with the network, without `--offline`"
        )
    data = folder / commit
    check_files(source.describe(), manifest.files, data, base=base, are_loaded=are_loaded)
    files = tuple(source.file(file.path, data / file.path, file.size) for file in manifest.files)
    left_out, notes = manifest.details.get("left_out"), manifest.details.get("notes")
    reasons = left_out.items() if isinstance(left_out, dict) else ()
    return Snapshot(
        commit,
        files,
        tuple((data / str(name), str(reason)) for name, reason in reasons),
        tuple(map(str, notes)) if isinstance(notes, list) else (),
    )


def is_cached(source: HubSource, selection: FileSelection, *, base: Path) -> bool:
    """Return whether the download is complete."""
    try:
        cached(source, selection, base=base)
    except PreflightError:
        return False
    return True


def known_commit(source: HubSource, *, base: Path) -> str | None:
    """Return a source's revision if that is a commit, else the commit recorded last, or None. Uses no network."""
    if source.is_pinned:
        return source.revision
    try:
        commit = _reference(source, base).read_text().strip()
    except OSError:
        return None
    return commit if is_commit(commit) else None


def download_folder(source: HubSource, *, base: Path) -> Path | None:
    """Return the folder of a source's download, which need not exist, or None if its commit is not known."""
    commit = known_commit(source, base=base)
    return None if commit is None else repository_folder(source, base) / commit


def record_commit(source: HubSource, commit: str, *, base: Path) -> None:
    """Record the commit that a branch or tag names now."""
    if not source.is_pinned:
        write_text(_reference(source, base), f"{commit}\n")


def check(source: HubSource, selection: FileSelection | None = None, *, offline: bool = False) -> WantedFiles:
    """Return the files that a download would fetch, and their commit. Without `selection`, return all matching files.

    The list of files comes from the hub or, offline, from the Hugging Face cache that other tools share.

    Raises:
        PreflightError: the hub cannot be reached, or has no such data set, revision or files.
    """
    return find_wanted_files(source, selection or FileSelection(), offline=offline or is_offline())


def check_download(source: HubSource, selection: FileSelection, *, base: Path, offline: bool) -> None:
    """Check that a source that is not downloaded, or is damaged, can be downloaded.

    Offline, the cache of other tools must have its files.

    Raises:
        PreflightError: as for `check`, or offline, as for `cached`.
    """
    offline = offline or is_offline()
    if _is_out_of_reach(source, offline):
        cached(source, selection, base=base)
    wanted = check(source, selection, offline=offline)
    if offline:
        check_cached(source, wanted)


def fetch(
    source: HubSource, selection: FileSelection, *, base: Path, offline: bool, progress: Progress | None = None
) -> Snapshot:
    """Return the complete download of a source, after downloading what is missing.

    Raises:
        PreflightError: the hub cannot be reached or has no such data, a file stays damaged, or the disk is too small.
    """
    offline = offline or is_offline()
    if _is_out_of_reach(source, offline) or is_cached(source, selection, base=base):
        return cached(source, selection, base=base)
    folder = repository_folder(source, base)
    with exclusive(folder):
        if not is_cached(source, selection, base=base):
            delete_leftovers(folder / MANIFESTS)
            delete_leftovers(folder / REVISIONS)
            wanted = check(source, selection, offline=offline)
            if offline:
                check_cached(source, wanted)
            _download(source, selection, wanted, base=base, offline=offline, progress=progress)
    return cached(source, selection, base=base)


def _is_out_of_reach(source: HubSource, offline: bool) -> bool:
    return offline and list_cached_files(source.repository, source.revision) is None


def _download(
    source: HubSource,
    selection: FileSelection,
    wanted: WantedFiles,
    *,
    base: Path,
    offline: bool,
    progress: Progress | None,
) -> None:
    """Get the files from the cache of other tools or from the hub, and write the manifest."""
    folder = repository_folder(source, base) / wanted.commit
    parts = parts_folder(folder)
    find_copy = partial(find_cached_file, source.repository, wanted.commit)
    make_folder(folder)
    make_folder(parts)
    missing = [file for file in wanted.files if find_copy(file) is None and not (folder / file.path).is_file()]
    needed = sum(file.size for file in missing)
    check_room(source.describe(), folder, needed, advice="lower `max_files`, ")
    url = f"{endpoint()}/datasets/{source.repository}/resolve/{wanted.commit}"
    digests = download(
        wanted.files,
        folder,
        parts=parts,
        base_url=None if offline else url,
        token=None if offline else read_token(),
        progress=progress,
        find_copy=find_copy,
    )
    files = tuple(StoredFile(file.path, file.size, digests[file.path]) for file in wanted.files)
    details = {
        "repository": source.repository,
        "commit": wanted.commit,
        "left_out": wanted.left_out,
        "notes": wanted.notes,
    }
    write_manifest(_manifest(source, wanted.commit, selection, base), Manifest(files, details))
    record_commit(source, wanted.commit, base=base)
    with suppress(OSError):  # parts of another selection of files may be there
        parts.rmdir()


def _reference(source: HubSource, base: Path) -> Path:
    return repository_folder(source, base) / REVISIONS / quote(source.revision, safe="")


def _manifest(source: HubSource, commit: str, selection: FileSelection, base: Path) -> Path:
    key = json.dumps([source.pattern, commit, selection.max_files, selection.validation_shard])
    return repository_folder(source, base) / MANIFESTS / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
