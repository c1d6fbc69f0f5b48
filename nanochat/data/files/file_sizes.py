"""Sizes of data files: whether they are small enough to be read before a run, and how many rows they hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from nanochat.data.files.file_kinds import kind_of, reader_of
from nanochat.data.files.formats.parquet_batches import open_parquet
from nanochat.data.files.formats.readable_file import ReadableFile
from nanochat.data.files.formats.streams import count_lines, raw_lines

SMALL_BYTES = 1 << 23
"""Files up to this size together are read in about a second. They are checked whole before a run."""
_SAMPLED_FILES = 8
_EXPANSION = 5
"""A rough ratio of text to compressed text."""


def are_small(paths: Iterable[Path]) -> bool:
    """Return whether files are small enough together to be read whole before a run."""
    total = 0
    for path in paths:
        kind = kind_of(path)
        total += path.stat().st_size * (_EXPANSION if kind is not None and kind.compression is not None else 1)
    return total <= SMALL_BYTES


def estimate_rows(files: Sequence[ReadableFile]) -> int:
    """Return the number of rows or lines in files: exact if the files are small, else estimated from a few of them."""
    sizes = [file.path.stat().st_size for file in files]
    if are_small(file.path for file in files):
        return sum(_count_rows(file, size) for file, size in zip(files, sizes, strict=True))
    step = -(-len(files) // _SAMPLED_FILES)
    rows = sum(_count_rows(file, size) for file, size in zip(files[::step], sizes[::step], strict=True))
    return round(rows * sum(sizes) / max(1, sum(sizes[::step])))


def _count_rows(file: ReadableFile, size: int) -> int:
    """Return the rows of a parquet file, 1 for a page, or the lines of another file; an estimate if it is large."""
    match reader_of(file.path):
        case "parquet":
            return int(open_parquet(file).metadata.num_rows)
        case "html" | "xml":
            return 1
    return estimate_lines(file.path, size)


def estimate_lines(path: Path, size: int) -> int:
    """Return the number of lines in a file of `size` bytes, estimated from its beginning if it is large."""
    lines, read_bytes = count_lines(path, SMALL_BYTES)
    return round(lines * size / max(1, read_bytes))


def count_texts(file: ReadableFile, max_chars: int) -> int:
    """Return the number of rows of a file, good and bad ones; of a text file, roughly that of its texts."""
    match reader_of(file.path):
        case "parquet":
            return int(open_parquet(file).metadata.num_rows)
        case "json lines":
            return sum(not line.isspace() for line in raw_lines(file.path, 0))
        case _:
            return -(-file.path.stat().st_size // max_chars)
