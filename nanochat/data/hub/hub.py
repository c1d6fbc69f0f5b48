"""Data sets of the Hugging Face hub, downloaded to `<base>/hub` and verified.

A download has the files of one commit. Its manifest is written last, and only the manifest shows that the download is
complete. Without the network, only complete downloads are read. The commit that a branch or tag last named is kept
beside them. Not here: which split or column is read, and the lock files of recipes.
"""

from __future__ import annotations

import fcntl
import fnmatch
import glob
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from nanochat import runtime
from nanochat.data.files.digests import MEMORY_FILE, remembered_digests
from nanochat.data.files.file_selection import AnyPath, DataFile, FileSelection, lower_suffix
from nanochat.data.hub.download import Progress, download
from nanochat.data.hub.listing import RemoteFile, list_files
from nanochat.errors import PreflightError
from nanochat.storage.files import write_text

DEFAULT_REVISION = "main"
DEFAULT_ENDPOINT = "https://huggingface.co"

_PREFIX = "hf://datasets/"
_SPARE_BYTES = 1 << 28
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class HubSource:
    """A hub data set as a recipe names it."""

    repository: str
    pattern: str
    revision: str

    @classmethod
    def parse(cls, uri: str, revision: str | None) -> HubSource:
        """Return the parts of `hf://datasets/OWNER/NAME`, which a folder, file or glob may follow.

        Raises:
            PreflightError: `uri` has another form.
        """
        parts = uri.removeprefix(_PREFIX).split("/", 2)
        if not uri.startswith(_PREFIX) or len(parts) < 2 or not all(parts[:2]) or "@" in parts[1]:
            raise PreflightError(
                f"`{uri}`: expected {_PREFIX}OWNER/NAME without a revision, optionally with a folder or glob"
            )
        return cls("/".join(parts[:2]), parts[2].rstrip("/") if len(parts) > 2 else "", revision or DEFAULT_REVISION)

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return _COMMIT.fullmatch(self.revision) is not None

    def describe(self) -> str:
        """Return the data set, files and revision, for messages."""
        pattern = f"/{self.pattern}" if self.pattern else ""
        return f"{_PREFIX}{self.repository}{pattern} (revision {self.revision})"

    def matches(self, name: str) -> bool:
        """Return whether a file of the repository belongs to the source. Its suffix is compared without regard to case.

        A folder means the files below it that are not hidden, and so does no folder.
        """
        if name == self.pattern:
            return True
        if not self.pattern or name.startswith(f"{self.pattern}/"):
            return not any(part.startswith(".") for part in PurePosixPath(name).relative_to(self.pattern).parts)
        return fnmatch.fnmatchcase(lower_suffix(name), lower_suffix(self.pattern))

    def file(self, name: str, path: AnyPath, size: int) -> DataFile[AnyPath]:
        """Return a file of the repository, whose split its name tells below the fixed part of the pattern."""
        fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), PurePosixPath(self.pattern).parts))
        is_named = name == self.pattern
        root = PurePosixPath(*fixed[:-1] if is_named else fixed)
        return DataFile(path, PurePosixPath(name).relative_to(root), size, is_named)


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
            if digest_of(path, None) != entry["sha256"]:
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
    return commit if _COMMIT.fullmatch(commit) else None


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
            base_url=f"{_endpoint()}/datasets/{source.repository}/resolve/{commit}",
            token=runtime.environment("HF_TOKEN"),
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
    listing = list_files(_endpoint(), source.repository, source.revision, token=runtime.environment("HF_TOKEN"))
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


def _endpoint() -> str:
    return (runtime.environment("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keep other processes from downloading the same data set at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
