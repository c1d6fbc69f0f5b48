"""Rows of one parquet, jsonl or txt file, read a bounded part at a time, with cursors to go on from.

A cursor is a tuple of integers that is valid for one file: `(row group, rows into it)` for parquet, `(byte, line)` for
jsonl and txt. Every error names the file, and the line where there is one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.errors import PreflightError, StageError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

Cursor = tuple[int, ...]
START: Cursor = (0, 0)
DATA_SUFFIXES = (".parquet", ".jsonl", ".txt")
TXT_DOCUMENT_CHARS = 16_000

_BATCH_ROWS = 256
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class JsonLine:
    """One line of a jsonl file: its value, or what is wrong with it."""

    path: Path
    line: int
    value: object
    problem: str | None
    next_byte: int

    def where(self) -> str:
        """Return `file:line`."""
        return f"{self.path}:{self.line}"


def read_texts(path: Path, column: str, cursor: Cursor, *, max_chars: int | None) -> Iterator[tuple[str, Cursor]]:
    """Yield each text of a file from `cursor` on, with the cursor behind it; empty texts and nulls are left out.

    A parquet or jsonl row is one text. A txt file gives texts of whole lines, of at most
    `max_chars` characters where no single line is longer.

    Raises:
        PreflightError: the file, or the column in it, is missing, or the kind of file is not known.
        StageError: the file is damaged, or a row has no such text.
    """
    match path.suffix:
        case ".parquet":
            yield from _parquet_texts(path, column, cursor)
        case ".jsonl":
            yield from _jsonl_texts(path, column, cursor)
        case ".txt":
            yield from _txt_texts(path, cursor, max_chars or TXT_DOCUMENT_CHARS)
        case _:
            raise PreflightError(f"{path}: not a kind of file that is read here; use {', '.join(DATA_SUFFIXES)}")


def check_file(path: Path, columns: Sequence[str]) -> None:
    """Check that a file is there, not empty, not cut off, and (parquet) has `columns`.

    Raises:
        PreflightError: it is not so.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise PreflightError(f"{path}: cannot be read ({error.strerror})") from error
    if size == 0:
        raise PreflightError(f"{path}: the file is empty")
    if path.suffix == ".parquet":
        try:
            file = open_parquet(path, columns)
        except StageError as error:
            raise PreflightError(str(error)) from error
        if file.metadata.num_rows == 0:
            raise PreflightError(f"{path}: the file has no rows")


def open_parquet(path: Path, columns: Sequence[str]) -> pq.ParquetFile:
    """Return an open parquet file that has `columns`.

    Raises:
        StageError: the file is damaged.
        PreflightError: it is missing, or lacks a column.
    """
    import pyarrow.parquet as pq  # imported late: planning reads none of these files

    if not path.is_file():
        raise PreflightError(f"{path}: no such file")
    with _damage_named(path):
        file = pq.ParquetFile(path, buffer_size=_READ_BYTES)
    names = file.schema_arrow.names
    for column in columns:
        if column not in names:
            raise PreflightError(f"{path}: no column `{column}`; its columns are: {', '.join(names)}")
    return file


def parquet_batches(
    path: Path, columns: Sequence[str] | None, cursor: Cursor
) -> Iterator[tuple[pa.RecordBatch, Cursor]]:
    """Yield batches of rows from `cursor` on, each with the cursor of its first row; memory does not grow with the
    size of row groups.

    Raises:
        PreflightError, StageError: as `open_parquet`.
    """
    file = open_parquet(path, columns or ())
    wanted = list(columns) if columns is not None else None
    group, skip = cursor
    with _damage_named(path):
        while group < file.num_row_groups:
            row = 0
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=wanted, use_threads=False):
                kept = batch.slice(max(0, skip - row))
                row += batch.num_rows
                if kept.num_rows:
                    yield kept, (group, row - kept.num_rows)
            group, skip = group + 1, 0


def json_lines(path: Path, cursor: Cursor = START) -> Iterator[JsonLine]:
    """Yield the lines of a jsonl file from `cursor` on, blank ones left out; a bad line carries its problem.

    Raises:
        PreflightError: the file cannot be opened.
    """
    offset, number = cursor
    for raw in _lines(path, offset):
        offset += len(raw)
        number += 1
        if raw.strip(b"\xef\xbb\xbf \t\r\n"):
            value, problem = _parse_json(raw)
            yield JsonLine(path, number, value, problem, offset)


def _parse_json(raw: bytes) -> tuple[object, str | None]:
    try:
        text = raw.decode("utf-8-sig")
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        return None, f"not UTF-8 at byte {error.start + 1} of the line"
    except UnicodeEncodeError:
        return None, "holds half of a surrogate pair (an escape such as \\ud83d on its own)"
    except json.JSONDecodeError as error:
        return None, f"not JSON: {error.msg} at column {error.colno}"
    except RecursionError:
        return None, "not JSON that can be read: nested too deeply"
    return value, None


def _lines(path: Path, offset: int) -> Iterator[bytes]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise PreflightError(f"{path}: cannot be read ({error.strerror})") from error
    with file:
        file.seek(offset)
        yield from file


def _parquet_texts(path: Path, column: str, cursor: Cursor) -> Iterator[tuple[str, Cursor]]:
    for batch, (group, row) in parquet_batches(path, [column], cursor):
        values = batch.column(0)
        if not _is_text(values.type):
            raise PreflightError(f"{path}: column `{column}` holds {values.type}, not text")
        for i, text in enumerate(values.to_pylist()):
            if text:
                yield text, (group, row + i + 1)


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _jsonl_texts(path: Path, column: str, cursor: Cursor) -> Iterator[tuple[str, Cursor]]:
    for line in json_lines(path, cursor):
        if line.problem is not None:
            raise StageError(f"{line.where()}: {line.problem}")
        row = line.value
        if not isinstance(row, dict):
            raise StageError(f"{line.where()}: expected an object with the key `{column}`")
        if column not in row:
            raise PreflightError(f"{line.where()}: no key `{column}`; its keys are: {', '.join(map(str, row))}")
        text = row[column]
        if not isinstance(text, str):
            raise StageError(f"{line.where()}: `{column}` is {type(text).__name__}, not text")
        if text:
            yield text, (line.next_byte, line.line)


def _txt_texts(path: Path, cursor: Cursor, max_chars: int) -> Iterator[tuple[str, Cursor]]:
    """Yield consecutive lines joined to texts of at most `max_chars`; a longer line is a text of its own."""
    offset, number = cursor
    held: list[str] = []
    held_chars = 0
    behind = cursor
    for raw in _lines(path, offset):
        try:
            line = raw.decode("utf-8-sig" if offset == 0 else "utf-8")
        except UnicodeDecodeError as error:
            raise StageError(f"{path}:{number + 1}: not UTF-8 at byte {error.start + 1} of the line") from error
        if held and held_chars + len(line) > max_chars:
            yield "".join(held), behind
            held, held_chars = [], 0
        offset += len(raw)
        number += 1
        held.append(line)
        held_chars += len(line)
        behind = (offset, number)
    if held:
        yield "".join(held), behind


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise StageError(f"{path}: damaged or cut off, not readable as parquet ({error}); get it again") from error
