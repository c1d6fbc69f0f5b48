"""Data sets of the Hugging Face hub, downloaded to `<base>/hub` and verified.

A download has the files of one commit. Its manifest is written last, and only the manifest shows that the download is
complete. Without the network, only complete downloads are read. The commit that a branch or tag last named is kept
beside them. Not here: which split or column is read, and the lock files of recipes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from nanochat.data.files.digests import MEMORY_FILE, remembered_digests
from nanochat.data.files.file_selection import DataFile, FileSelection
from nanochat.data.hub.access import endpoint, read_token
from nanochat.data.hub.download import Progress, download
from nanochat.data.hub.listing import RemoteFile, list_files
from nanochat.data.hub.source import HubSource, is_commit
from nanochat.errors import PreflightError
from nanochat.storage.files import write_text

_SPARE_BYTES = 1 << 28


@dataclass(frozen=True)
class Snapshot:
    """A complete download: its commit, its files, and the paths of other matching files with the reason for each."""

    commit: str
    files: tuple[DataFile[Path], ...]
    left_out: tuple[tuple[Path, str], ...]


def cached(source: HubSource, selection: FileSelection, *, base: Path) -> Snapshot:
    """Return the complete download of a source, without the network.

    A file whose size or modification time has changed is compared with its digest.

    Raises:
        PreflightError: there is no complete download; the message names what is missing or damaged.
    """
    folder, commit = _folder(source, base), known_commit(source, base=base)
    try:
        manifest = json.loads(_manifest(source, commit or "", selection, base).read_text())
    except (OSError, ValueError):
        raise PreflightError(
            f"{source.describe()} is not downloaded under {folder}; run once with the network, without `--offline`"
        ) from None
    files = []
    with remembered_digests(base / MEMORY_FILE) as digest_of:
        for entry in manifest["files"]:
            path = folder / manifest["commit"] / entry["path"]
            if not path.is_file() or path.stat().st_size != entry["size"]:
                raise PreflightError(f"{source.describe()}: {path} is missing or cut off; run once with the network")
            if digest_of(path) != entry["sha256"]:
                raise PreflightError(f"{source.describe()}: {path} is damaged; run once with the network")
            files.append(source.file(entry["path"], path, entry["size"]))
    others = ((folder / manifest["commit"] / name, reason) for name, reason in manifest.get("left_out", {}).items())
    return Snapshot(manifest["commit"], tuple(files), tuple(others))


def is_cached(source: HubSource, selection: FileSelection, *, base: Path) -> bool:
    """Return whether the download is complete."""
    try:
        cached(source, selection, base=base)
    except PreflightError:
        return False
    return True


def known_commit(source: HubSource, *, base: Path) -> str | None:
    """Return, without the network, the commit that a source's revision is or last named; None if it is unknown."""
    if source.is_pinned:
        return source.revision
    try:
        commit = _reference(source, base).read_text().strip()
    except OSError:
        return None
    return commit if is_commit(commit) else None


def record_commit(source: HubSource, commit: str, *, base: Path) -> None:
    """Record the commit that a branch or tag names now."""
    if not source.is_pinned:
        write_text(_reference(source, base), f"{commit}\n")


def check(source: HubSource) -> str:
    """Ask the hub for the commit that the revision names now, and check that there are files to download.

    Raises:
        PreflightError: the hub cannot be reached, or has no such data set, revision or files.
    """
    return _wanted_files(source, FileSelection())[0]


def fetch(
    source: HubSource, selection: FileSelection, *, base: Path, offline: bool, progress: Progress | None = None
) -> Snapshot:
    """Return the complete download of a source, after downloading what is missing.

    Raises:
        PreflightError: the hub cannot be reached or has no such data, a file stays damaged, or the disk is too small.
    """
    if offline or is_cached(source, selection, base=base):
        return cached(source, selection, base=base)
    with _lock(_folder(source, base)):
        if is_cached(source, selection, base=base):
            return cached(source, selection, base=base)
        commit, files, left_out = _wanted_files(source, selection)
        folder = _folder(source, base) / commit
        _check_space(folder, files)
        digests = download(
            files,
            folder,
            base_url=f"{endpoint()}/datasets/{source.repository}/resolve/{commit}",
            token=read_token(),
            progress=progress,
        )
        content = {
            "repository": source.repository,
            "commit": commit,
            "files": [{"path": file.path, "size": file.size, "sha256": digests[file.path]} for file in files],
            "left_out": left_out,
        }
        write_text(_manifest(source, commit, selection, base), json.dumps(content, indent=1))
        record_commit(source, commit, base=base)
    return cached(source, selection, base=base)


def _wanted_files(source: HubSource, selection: FileSelection) -> tuple[str, list[RemoteFile], dict[str, str]]:
    """Return the commit, the files to download, and the names of other matching files with the reason for each."""
    listing = list_files(source.repository, source.revision)
    matching = {PurePosixPath(file.path): file for file in listing.files if source.matches(file.path)}
    choice = selection.select(source.file(str(path), path, file.size) for path, file in matching.items())
    if not choice.used:
        known = ", ".join(file.path for file in listing.files[:10]) or "none"
        raise PreflightError(f"{source.describe()}: no data file matches; files there are: {known}")
    left_out = {str(path): reason for path, reason in choice.left_out}
    return listing.commit, [matching[path] for path in choice.paths], left_out


def _check_space(folder: Path, files: list[RemoteFile]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    needed = sum(file.size for file in files if not (folder / file.path).is_file()) + _SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise PreflightError(
            f"no room to download: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free at {folder}; "
            "free some space, lower `max_files`, or set NANOCHAT_BASE_DIR to another disk"
        )


def _reference(source: HubSource, base: Path) -> Path:
    return _folder(source, base) / "revisions" / quote(source.revision, safe="")


def _manifest(source: HubSource, commit: str, selection: FileSelection, base: Path) -> Path:
    key = json.dumps([source.pattern, commit, selection.max_files, selection.validation_shard])
    return _folder(source, base) / "manifests" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _folder(source: HubSource, base: Path) -> Path:
    return base / "hub" / "datasets" / source.repository


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keep other processes from downloading the same data set at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
