"""Files of a token cache: a pair of files per part, the list of complete parts, and the lock of the builder."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nanochat.storage.files import atomic_write
from nanochat.storage.locking import lock_file
from nanochat.tokenizer.bpe import IntArray

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


def write_part(
    folder: Path, number: int, dtype: TokenType, batches: Iterable[tuple[list[IntArray], list[tuple[int, ...]]]]
) -> None:
    """Write the two files of a part, each visible only once it is complete: first the tokens, then the index.

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


def open_parts(folder: Path, dtype: TokenType) -> list[Part] | None:
    """Return the parts of a complete cache, or None. A damaged cache is deleted."""
    try:
        sizes = json.loads((folder / LIST_FILE).read_text())
    except FileNotFoundError:
        return None
    parts = []
    for name, size in sizes.items():
        tokens, index = _paths(folder, int(name))
        if not (tokens.is_file() and index.is_file() and tokens.stat().st_size == size):
            _clear(folder)
            return None
        mapped = np.memmap(tokens, dtype=dtype, mode="r") if size else np.zeros(0, dtype)
        parts.append(Part(int(name), mapped, np.load(index, mmap_mode="r")))
    return parts


def last_place(folder: Path, number: int) -> tuple[int, ...]:
    """Return the source's position after the last document of a finished part."""
    return tuple(np.load(_paths(folder, number)[1], mmap_mode="r")[-1, 1:].tolist())


def _paths(folder: Path, number: int) -> tuple[Path, Path]:
    return folder / f"{number:05d}.tokens", folder / f"{number:05d}.index.npy"


def _clear(folder: Path) -> None:
    (folder / LIST_FILE).unlink()
    for path in [*folder.glob("*.index.npy"), *folder.glob("*.tokens")]:
        path.unlink()


@contextmanager
def locked(folder: Path, on_progress: OnProgress) -> Iterator[None]:
    """Hold the folder's lock. While waiting for another process, call `on_progress`, which may stop the waiting."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    with path.open("w") as file:
        while not lock_file(file.fileno(), path, wait=False):
            on_progress(0, 0)
            time.sleep(_WAIT_SECONDS)
        yield
