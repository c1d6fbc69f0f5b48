"""The record of a complete download: its files with their sizes and digests. It is written last.

A download without a readable record does not count as complete. Before the files are used, their sizes and times are
compared, and if these have changed, their digests. Before a stage loads them, their digests are compared in any case.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from nanochat.data.files.digests import MEMORY_FILE, remembered_digests
from nanochat.data.places.file_names import why_refused
from nanochat.errors import PreflightError
from nanochat.storage.files import write_text

_THREADS = 4
_SHA256 = re.compile("[0-9a-f]{64}")


class DamagedDownloadError(PreflightError):
    """A file of a complete download is missing or has changed. `problem` names it and says what is wrong."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}; run once with the network, which downloads it again")
        self.problem = problem


@dataclass(frozen=True)
class StoredFile:
    """A file of a download."""

    path: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        if why_refused(self.path) is not None or _SHA256.fullmatch(self.sha256) is None or type(self.size) is not int:
            raise ValueError(f"no record of a file: {self}")


@dataclass(frozen=True)
class Manifest:
    """The files of a download, in their order, and what else its place records."""

    files: tuple[StoredFile, ...]
    details: Mapping[str, object]


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write the record of a download whose files are all on disk."""
    content = {**manifest.details, "files": [asdict(file) for file in manifest.files]}
    write_text(path, json.dumps(content, indent=1))


def read_manifest(path: Path) -> Manifest | None:
    """Return the record of a download, None if there is none or it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        files = tuple(StoredFile(**entry) for entry in content.pop("files"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return Manifest(files, content)


def check_files(what: str, files: Iterable[StoredFile], folder: Path, *, base: Path, are_loaded: bool = False) -> None:
    """Check that the files of a download are as recorded. If they are about to be loaded, their content is read.

    Raises:
        DamagedDownloadError: a file is missing or has changed; the message names it.
    """
    by_path = {folder / file.path: file for file in files}
    for path, file in by_path.items():
        if not path.is_file() or path.stat().st_size != file.size:
            raise DamagedDownloadError(f"{what}: {path} is missing or cut off")
    with (
        remembered_digests(base / MEMORY_FILE, are_loaded=are_loaded) as digest_of,
        ThreadPoolExecutor(_THREADS) as pool,
    ):
        digests = pool.map(lambda path: digest_of(path, None), by_path)
        for (path, file), digest in zip(by_path.items(), digests, strict=True):
            if digest != file.sha256:
                raise DamagedDownloadError(f"{what}: {path} is damaged")
