"""Files of a token cache: a pair of files per part, the list of complete parts, and the lock of the builder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from nanochat.storage.checked_json import read_checked, write_checked
from nanochat.storage.files import atomic_write
from nanochat.storage.integrity import FileDigest, describe_file, find_change
from nanochat.storage.locking import lock_file, open_lock
from nanochat.tokenizer.pieces import IntArray

TokenType = np.dtype[np.generic]
OnProgress = Callable[[int, int], None]
"""Receives the numbers of documents and tokens so far; may raise an exception to stop the build."""

FOLDER = "tokens"
LIST_FILE, LOCK_FILE = "parts.json", ".lock"

_WAIT_SECONDS = 0.2


@dataclass(frozen=True)
class Part:
    """The documents of one file of a source.

    Attributes:
        number: the file's number in the source.
        tokens: the token ids of all documents, one after the other.
        index: a row per document: the end of its ids, and the source's position after it (cursor and piece).
    """

    number: int
    tokens: npt.NDArray[np.generic]
    index: npt.NDArray[np.int64]

    def place(self, row: int) -> tuple[int, ...]:
        """Return the source's position after a document: the cursor's numbers, and the piece."""
        return tuple(self.index[row, 1:].tolist())


class PartFiles(BaseModel):
    """The sizes and digests of the two files of a part."""

    model_config = ConfigDict(frozen=True)

    tokens: FileDigest
    index: FileDigest


class PartList(BaseModel):
    """The parts of a cache by the numbers of their files, and what the contents of the cache depend on."""

    model_config = ConfigDict(frozen=True)

    key: dict[str, JsonValue]
    is_complete: bool = False
    parts: dict[int, PartFiles] = {}


def read_list(folder: Path) -> PartList | None:
    """Return the list of a cache's parts, None if it is missing or damaged."""
    content = read_checked(folder / LIST_FILE)
    try:
        return PartList.model_validate_json(content) if content is not None else None
    except ValidationError:
        return None


def write_list(folder: Path, listed: PartList) -> None:
    """Replace the list of a cache's parts."""
    write_checked(folder / LIST_FILE, listed.model_dump_json(indent=1))


def whole_parts(
    folder: Path, listed: PartList, *, on_progress: OnProgress, notify: Callable[[str], None]
) -> dict[int, PartFiles]:
    """Return the listed parts before the first one that is damaged, which `notify` names. Their content is read."""
    whole: dict[int, PartFiles] = {}
    for number, part in listed.parts.items():
        on_progress(0, 0)
        for path, expected in zip(_paths(folder, number), (part.tokens, part.index), strict=True):
            if (change := find_change(path, expected)) is not None:
                notify(f"{path} {change}; the documents from there on are tokenized again")
                return whole
        whole[number] = part
    return whole


def write_part(
    folder: Path, number: int, dtype: TokenType, batches: Iterable[tuple[list[IntArray], list[tuple[int, ...]]]]
) -> PartFiles:
    """Write the two files of a part, and return what they are like for the list, without which they do not count.

    A batch holds the ids of some documents, and the source's position after each.
    """
    tokens, index = _paths(folder, number)
    rows: list[tuple[int, ...]] = []
    end = 0
    with atomic_write(tokens) as scratch, scratch.open("wb") as file:
        for encoded, places in batches:
            for ids, place in zip(encoded, places, strict=True):
                end += len(ids)
                rows.append((end, *place))
            file.write(np.concatenate(encoded).astype(dtype).tobytes())
    with atomic_write(index) as scratch, scratch.open("wb") as file:
        np.save(file, np.array(rows, dtype=np.int64))
    return PartFiles(tokens=describe_file(tokens), index=describe_file(index))


def open_parts(folder: Path, numbers: Iterable[int], dtype: TokenType) -> list[Part]:
    """Return parts that are whole, memory-mapped."""
    parts = []
    for number in numbers:
        tokens, index = _paths(folder, number)
        mapped = np.memmap(tokens, dtype=dtype, mode="r") if tokens.stat().st_size else np.zeros(0, dtype)
        parts.append(Part(number, mapped, np.load(index, mmap_mode="r")))
    return parts


def last_place(folder: Path, number: int) -> tuple[int, ...]:
    """Return the source's position after the last document of a finished part."""
    return tuple(np.load(_paths(folder, number)[1], mmap_mode="r")[-1, 1:].tolist())


def delete_parts(folder: Path, *, without: Iterable[int]) -> None:
    """Delete the files of all parts but some."""
    kept = {path for number in without for path in _paths(folder, number)}
    for path in {*folder.glob("*.index.npy"), *folder.glob("*.tokens")} - kept:
        path.unlink()


def _paths(folder: Path, number: int) -> tuple[Path, Path]:
    return folder / f"{number:05d}.tokens", folder / f"{number:05d}.index.npy"


@contextmanager
def locked(folder: Path, on_progress: OnProgress) -> Iterator[None]:
    """Hold the folder's lock. While waiting for another process, call `on_progress`, which may stop the waiting."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    descriptor = open_lock(path)
    try:
        while not lock_file(descriptor, path, wait=False):
            on_progress(0, 0)
            time.sleep(_WAIT_SECONDS)
        yield
    finally:
        os.close(descriptor)
