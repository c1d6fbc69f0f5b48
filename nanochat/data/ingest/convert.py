"""Converts one data file into parquet files, a part at a time, so that a killed conversion is resumed.

The parts are written to an unfinished copy. Only when all are on disk does it get the name under which it is found.
A file gives the same rows in the same order each time, so a resumed conversion continues after the rows of whole parts.
`datasets` reads arrow and feather files. No text becomes a number, a date or a null.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.data.files.file_kinds import kind_of
from nanochat.data.files.formats.streams import blocks
from nanochat.data.ingest.csv_rows import csv_rows
from nanochat.data.ingest.json_rows import json_rows
from nanochat.data.ingest.row_tables import TABLE_ROWS, UnreadableFileError, row_tables, with_places
from nanochat.data.ingest.store import PARTIAL_SUFFIX, Part, copy_folder, read_parts, write_parts
from nanochat.data.ingest.tar_rows import tar_rows
from nanochat.errors import PreflightError, StageError
from nanochat.storage.files import atomic_write, make_folder, move_into_place, sha256_of_file

if TYPE_CHECKING:
    import pyarrow as pa

PART_BYTES = 1 << 26
"""A part is complete once its tables take this much memory."""
_SPARE_BYTES = 1 << 28
"""Disk that decompressing leaves free."""
_MAX_RATIO = 500
_ALWAYS_ALLOWED_BYTES = 1 << 26
_DAMAGE = (ValueError, TypeError, KeyError, NotImplementedError, OSError, EOFError, MemoryError, tarfile.TarError)
"""Exceptions of libraries for damaged files, among them MemoryError: a damaged length may exceed any memory."""
_NAME_CHARS = 60

OnProgress = Callable[[int, int], None]
"""Receives about how many bytes of the file are converted, and its size. It may raise to stop the conversion."""


def convert(
    path: Path, *, base: Path, on_progress: OnProgress = lambda done, size: None, part_bytes: int = PART_BYTES
) -> Path:
    """Return the folder of a file's complete copy, after converting what is missing.

    Raises:
        PreflightError: the file cannot be read, or the disk is full. Nothing is left of the copy then.
        StageError: the file is compressed and damaged. Nothing is left of the copy then.
    """
    stamp = _stamp(path)
    folder = copy_folder(path, sha256_of_file(path), base=base)
    partial = folder.with_name(folder.name + PARTIAL_SUFFIX)
    try:
        make_folder(partial)
        _write_copy(path, partial, on_progress, part_bytes)
        if _stamp(path) != stamp:
            raise PreflightError(f"{path}: was changed while it was converted; run again")
    except (PreflightError, StageError):
        shutil.rmtree(partial, ignore_errors=True)
        raise
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = os.strerror(error.errno) if error.errno is not None else str(error)
        raise PreflightError(f"{path}: cannot be converted under {folder.parent}: {reason}") from error
    shutil.rmtree(folder, ignore_errors=True)  # a damaged copy
    move_into_place(partial, folder)
    return folder


def _write_copy(path: Path, partial: Path, on_progress: OnProgress, part_bytes: int) -> None:
    """Write the parts that an unfinished copy lacks, and delete what else is in it."""
    parts = list(itertools.takewhile(lambda part: _is_whole(partial / part.name, part), read_parts(partial) or ()))
    kept = {part.name for part in parts}
    for entry in partial.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name not in kept:
            entry.unlink()
    scratch = partial / "scratch"
    scratch.mkdir()
    size = path.stat().st_size
    done = sum(part.size for part in parts)
    name = os.fsencode(path.name[-_NAME_CHARS:]).decode(errors="replace")  # Arrow writes only names that are UTF-8
    for tables in _batched(_tables(path, sum(part.rows for part in parts), scratch), part_bytes):
        parts.append(_write_part(partial / f"{name}-{len(parts):05d}.parquet", tables))
        write_parts(partial, parts)
        done += parts[-1].size
        on_progress(min(done, size), size)
    write_parts(partial, parts)
    shutil.rmtree(scratch)


def _tables(path: Path, first_row: int, scratch: Path) -> Iterator[pa.Table]:
    """Yield the rows of a file from a row on. Errors of libraries are raised as PreflightError with the place."""
    kind = kind_of(path)
    assert kind is not None, f"{path} has no kind"
    plain = path if kind.compression is None else _decompress(path, scratch / f"input{kind.format}")
    try:
        yield from read_tables(plain, kind.format, first_row=first_row)
    except UnreadableFileError as error:
        raise PreflightError(f"{path}{error}") from error
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        problem = f"damaged or cut off, not readable as {kind.format.removeprefix('.')}"
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PreflightError(f"{path}: {problem} ({reason}); download or copy it again") from error


def _batched(tables: Iterator[pa.Table], part_bytes: int) -> Iterator[list[pa.Table]]:
    """Yield the tables of each part. Columns have one type in a part, but may have another one in the next part."""
    held: list[pa.Table] = []
    held_bytes = 0
    for table in tables:
        if held and (held_bytes >= part_bytes or not _fit_together(held[0], table)):
            yield held
            held, held_bytes = [], 0
        if table.num_rows:
            held.append(table)
            held_bytes += table.nbytes
    if held:
        yield held


def _fit_together(one: pa.Table, other: pa.Table) -> bool:
    import pyarrow as pa

    try:
        pa.unify_schemas([one.schema, other.schema])
    except pa.ArrowException:
        return False
    return True


def _write_part(path: Path, tables: list[pa.Table]) -> Part:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.concat_tables(tables, promote_options="default")
    with atomic_write(path) as scratch:
        pq.write_table(table, scratch, compression="zstd", row_group_size=1_000)
    return Part(path.name, table.num_rows, path.stat().st_size, sha256_of_file(path))


def _is_whole(path: Path, part: Part) -> bool:
    return path.is_file() and path.stat().st_size == part.size and sha256_of_file(path) == part.sha256


def _decompress(path: Path, target: Path) -> Path:
    """Write the decompressed content of a file and return its path.

    Raises:
        PreflightError: the content is too large for the disk or for the file's size, as that of a bomb.
        StageError: the file is damaged.
    """
    limit = max(_ALWAYS_ALLOWED_BYTES, _MAX_RATIO * path.stat().st_size)
    written = 0
    with target.open("wb") as file:
        for block in blocks(path):
            written += len(block)
            if written > limit:
                raise PreflightError(f"{path}: has more than {_MAX_RATIO} times its size when decompressed; refused")
            if shutil.disk_usage(target.parent).free < _SPARE_BYTES:
                raise PreflightError(f"{path}: too little space is left under {target.parent} to decompress it")
            file.write(block)
    return target


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def read_tables(path: Path, file_format: str, *, first_row: int) -> Iterator[pa.Table]:
    """Yield the rows of a file that is not compressed, from a row on, with their places and problems.

    `file_format` is the suffix of the format.

    Raises:
        UnreadableFileError: the file is damaged; the message begins with the place in it.
        ValueError, OSError, ...: as the libraries raise them.
    """
    match file_format:
        case ".json":
            yield from row_tables(json_rows(path), first_row)
        case ".csv" | ".tsv":
            yield from row_tables(csv_rows(path, file_format), first_row)
        case ".tar":
            yield from row_tables(tar_rows(path), first_row)
        case _:
            yield from _arrow_tables(path, first_row)


def _arrow_tables(path: Path, first_row: int) -> Iterator[pa.Table]:
    import datasets

    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)
    with tempfile.TemporaryDirectory() as scratch:
        link = Path(scratch) / "input.arrow"  # the library gives a meaning to `[`, `*` and `::` in paths
        link.symlink_to(path.absolute())
        rows = datasets.load_dataset("arrow", data_files=str(link), split="train", streaming=True, cache_dir=scratch)
        for table in rows.skip(first_row).with_format("arrow").iter(batch_size=TABLE_ROWS):
            places = [f" row {first_row + number}" for number in range(1, table.num_rows + 1)]
            first_row += table.num_rows
            yield with_places(table.replace_schema_metadata(None), places)
