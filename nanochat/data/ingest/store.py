"""The converted copies of data files: where they are kept, and whether they are complete.

<base>/ingest/<key>/           a complete copy: parquet files, and the list of them with their digests
<base>/ingest/<key>.partial/   an unfinished copy, which the next conversion resumes

The key is a digest of the file's content and format, so a file is converted once, under any name. Planning a
run imports this module, so it imports nothing heavy. Not here: the conversion.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from nanochat.data.files.digests import MEMORY_FILE, DigestOf, remembered_digests
from nanochat.data.files.file_kinds import kind_of
from nanochat.data.files.formats.readable_file import ReadableFile
from nanochat.errors import PreflightError
from nanochat.storage.checked_json import read_checked, write_checked
from nanochat.storage.files import sha256_of_file

FOLDER, LIST_FILE, LOCK_FILE = "ingest", "parts.json", ".lock"
PARTIAL_SUFFIX = ".partial"
_VERSION = 5
"""Raised when the same file would be converted into different rows."""
_KEY_CHARS = 16
_DECOMPRESSED_PER_BYTE = 5
"""A rough average. A compressed file is decompressed into a file of its own during the conversion."""


@dataclass(frozen=True)
class Part:
    """A parquet file of a copy."""

    name: str
    rows: int
    size: int
    sha256: str


def is_convertible(path: Path) -> bool:
    """Return whether a file is read from a converted copy."""
    kind = kind_of(path)
    return kind is not None and kind.reader == "converted"


def copy_folder(path: Path, digest: str, *, base: Path) -> Path:
    """Return the folder of the copy of a file with this sha256, which need not exist."""
    kind = kind_of(path)
    assert kind is not None, f"{path} has no kind"
    key = json.dumps([_VERSION, kind.suffix, digest])
    return base / FOLDER / hashlib.sha256(key.encode()).hexdigest()[:_KEY_CHARS]


def readable_files(paths: Iterable[Path], *, base: Path) -> list[ReadableFile]:
    """Return the files to open: instead of each file that is converted the parts of its copy, none if it has no row.

    Raises:
        PreflightError: a file has no complete copy.
    """
    return [part for parts in parts_by_file(paths, base=base).values() for part in parts]


def parts_by_file(paths: Iterable[Path], *, base: Path) -> dict[Path, list[ReadableFile]]:
    """Return the files to open instead of each file, as `readable_files` does. Raises as it does."""
    files = {path: [ReadableFile(path)] for path in paths}
    if converted := [path for path in files if is_convertible(path)]:
        with remembered_digests(base / MEMORY_FILE) as digest_of:
            for path in converted:
                if (parts := _parts_of_copy(path, digest_of, base)) is None:
                    raise PreflightError(f"{path}: is not converted yet; the recipe's run converts it")
                files[path] = [ReadableFile(part, path) for part in parts]
    return files


def unconverted_files(paths: Iterable[Path], *, base: Path, are_loaded: bool = False) -> list[Path]:
    """Return the files that have to be converted before they can be read.

    The content of a copy is compared with its list if it is about to be loaded, else only if its size or time changed.
    """
    with remembered_digests(base / MEMORY_FILE) as digest_of:
        return [
            path
            for path in paths
            if is_convertible(path) and _parts_of_copy(path, digest_of, base, are_loaded=are_loaded) is None
        ]


def copy_folders(paths: Iterable[Path], *, base: Path) -> list[Path]:
    """Return the folders of the copies of files, which need not exist."""
    with remembered_digests(base / MEMORY_FILE) as digest_of:
        return [copy_folder(path, digest_of(path, None), base=base) for path in paths]


def estimate_copy_bytes(paths: Iterable[Path]) -> int:
    """Return about how much disk the conversion of files takes."""
    return sum(_DECOMPRESSED_PER_BYTE * size if is_packed else size for is_packed, size in map(_size, paths))


def read_parts(folder: Path) -> list[Part] | None:
    """Return the parts that the list in a folder names, None if it is missing, damaged or the list of another copy."""
    content = read_checked(folder / LIST_FILE)
    listed = json.loads(content) if content is not None else {}
    if listed.get("copy") != _key(folder):
        return None
    return [Part(**entry) for entry in listed["parts"]]


def write_parts(folder: Path, parts: Sequence[Part]) -> None:
    """Replace the list of parts in a folder."""
    listed = {"copy": _key(folder), "parts": [asdict(part) for part in parts]}
    write_checked(folder / LIST_FILE, json.dumps(listed, indent=1))


def copies(base: Path) -> Iterator[Path]:
    """Yield the folders of all copies, the unfinished ones included, sorted by path."""
    for path in sorted((base / FOLDER).glob("*")):
        if path.is_dir():
            yield path


def _key(folder: Path) -> str:
    return folder.name.removesuffix(PARTIAL_SUFFIX)


def _parts_of_copy(path: Path, digest_of: DigestOf, base: Path, *, are_loaded: bool = False) -> list[Path] | None:
    """Return the parquet files of a file's copy, None if the copy is missing, incomplete or damaged."""
    folder = copy_folder(path, digest_of(path, None), base=base)
    parts = read_parts(folder)
    for part in parts or ():
        file = folder / part.name
        if not file.is_file() or file.stat().st_size != part.size:
            return None
        if (sha256_of_file(file) if are_loaded else digest_of(file, None)) != part.sha256:
            return None
    return None if parts is None else [folder / part.name for part in parts]


def _size(path: Path) -> tuple[bool, int]:
    kind = kind_of(path)
    return kind is not None and kind.compression is not None, path.stat().st_size
