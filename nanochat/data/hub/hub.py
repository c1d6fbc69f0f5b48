"""Data sets of the Hugging Face hub, downloaded to `<base>/hub` and verified.

A download has the files of one commit. Its manifest is written last, and only the manifest shows that the download is
complete. Without the network, only complete downloads are read, and those of other tools. The commit that a branch or
tag last named is kept beside them. Not here: which split or column is read, and the lock files of recipes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

from nanochat.data.files.digests import MEMORY_FILE, remembered_digests
from nanochat.data.files.file_selection import DataFile, FileSelection
from nanochat.data.hub.access import endpoint, is_offline, read_token
from nanochat.data.hub.download import Progress, download
from nanochat.data.hub.hub_source import HubSource, is_commit
from nanochat.data.hub.listing import RemoteFile
from nanochat.data.hub.shared_cache import find_cached_file, list_cached_files
from nanochat.data.hub.wanted_files import WantedFiles, check_cached, find_wanted_files
from nanochat.errors import PreflightError
from nanochat.storage.files import exclusive, write_text

_SPARE_BYTES = 1 << 28


@dataclass(frozen=True)
class Snapshot:
    """A complete download: its commit, its files, and the paths of other matching files with the reason for each."""

    commit: str
    files: tuple[DataFile[Path], ...]
    left_out: tuple[tuple[Path, str], ...]
    notes: tuple[str, ...]


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
            if digest_of(path, None) != entry["sha256"]:
                raise PreflightError(f"{source.describe()}: {path} is damaged; run once with the network")
            files.append(source.file(entry["path"], path, entry["size"]))
    others = ((folder / manifest["commit"] / name, reason) for name, reason in manifest.get("left_out", {}).items())
    return Snapshot(manifest["commit"], tuple(files), tuple(others), tuple(manifest.get("notes", ())))


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
    with exclusive(_folder(source, base)):
        if not is_cached(source, selection, base=base):
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
    folder = _folder(source, base) / wanted.commit
    find_copy = partial(find_cached_file, source.repository, wanted.commit)
    _check_space(folder, [file for file in wanted.files if find_copy(file) is None])
    url = f"{endpoint()}/datasets/{source.repository}/resolve/{wanted.commit}"
    digests = download(
        wanted.files,
        folder,
        base_url=None if offline else url,
        token=None if offline else read_token(),
        progress=progress,
        find_copy=find_copy,
    )
    content = {
        "repository": source.repository,
        "commit": wanted.commit,
        "files": [{"path": file.path, "size": file.size, "sha256": digests[file.path]} for file in wanted.files],
        "left_out": wanted.left_out,
        "notes": wanted.notes,
    }
    write_text(_manifest(source, wanted.commit, selection, base), json.dumps(content, indent=1))
    record_commit(source, wanted.commit, base=base)


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
