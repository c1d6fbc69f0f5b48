"""Texts and rows of one data file in any of the formats: parquet, jsonl or txt.

A file is read a bounded part at a time, and its texts can be read from a cursor on. Every error names the file, and the
line if there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.data.files.cursors import START, Cursor
from nanochat.data.files.json_lines import json_lines, json_objects, raw_lines
from nanochat.data.files.parquet_batches import open_parquet, parquet_batches, parquet_rows
from nanochat.errors import PreflightError, StageError

if TYPE_CHECKING:
    import pyarrow as pa

DATA_SUFFIXES = (".parquet", ".jsonl", ".txt")
TXT_DOCUMENT_CHARS = 16_000


def read_texts(path: Path, column: str, cursor: Cursor, *, max_chars: int | None) -> Iterator[tuple[str, Cursor]]:
    """Yield the texts of a file from `cursor` on, each with the cursor after it; blank texts and nulls are skipped.

    A row of a parquet or jsonl file gives one text. A txt file gives texts of whole lines, of at most `max_chars`
    characters unless a single line is longer.

    Raises:
        PreflightError: the file or its column is missing, or the format is not supported.
        StageError: the file is damaged, or a row holds no text in `column`.
    """
    match path.suffix.lower():
        case ".parquet":
            yield from _parquet_texts(path, column, cursor)
        case ".jsonl":
            yield from _jsonl_texts(path, column, cursor)
        case ".txt":
            yield from _txt_texts(path, cursor, max_chars or TXT_DOCUMENT_CHARS)
        case _:
            raise PreflightError(f"{path}: unsupported format `{path.suffix}`; use {', '.join(DATA_SUFFIXES)}")


def read_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, object]]:
    """Yield the rows of a parquet or jsonl file as dicts of plain Python values; all columns if `columns` is None.

    Raises:
        PreflightError: the file or a column is missing.
        StageError: the file is damaged, or a line is not an object.
    """
    if path.suffix.lower() == ".parquet":
        yield from parquet_rows(path, columns)
        return
    for _, row in json_objects(path, columns or ()):
        yield row if columns is None else {column: row[column] for column in columns}


def check_file(path: Path, columns: Sequence[str]) -> None:
    """Check that a file exists, is not empty or cut off, and (parquet) has `columns`. It may have no rows.

    Raises:
        PreflightError: the message names the file.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise PreflightError(f"{path}: cannot be read ({error.strerror})") from error
    if size == 0:
        raise PreflightError(f"{path}: the file is empty")
    if path.suffix.lower() == ".parquet":
        try:
            open_parquet(path, columns)
        except StageError as error:
            raise PreflightError(str(error)) from error


def has_text(path: Path, column: str) -> bool:
    """Return whether a file holds a text that is not blank. Errors are those of `read_texts`."""
    return next(read_texts(path, column, START, max_chars=None), None) is not None


def has_rows(path: Path) -> bool:
    """Return whether a parquet file has rows, or a jsonl file a line that is not blank."""
    if path.suffix.lower() == ".parquet":
        return bool(open_parquet(path, ()).metadata.num_rows)
    return next(json_lines(path), None) is not None


def _parquet_texts(path: Path, column: str, cursor: Cursor) -> Iterator[tuple[str, Cursor]]:
    for batch, (group, row) in parquet_batches(path, [column], cursor):
        values = batch.column(0)
        if not _is_text(values.type):
            raise PreflightError(f"{path}: column `{column}` holds {values.type}, not text")
        for i, text in enumerate(values.to_pylist()):
            if text and not text.isspace():
                yield text, (group, row + i + 1)


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _jsonl_texts(path: Path, column: str, cursor: Cursor) -> Iterator[tuple[str, Cursor]]:
    for line, row in json_objects(path, [column], cursor):
        text = row[column]
        if not isinstance(text, str):
            raise StageError(f"{line.where()}: `{column}` is {type(text).__name__}, not text")
        if text and not text.isspace():
            yield text, line.next_cursor


def _txt_texts(path: Path, cursor: Cursor, max_chars: int) -> Iterator[tuple[str, Cursor]]:
    """Yield consecutive lines joined to texts of at most `max_chars`; a longer line is a text of its own."""
    offset, number = cursor
    held: list[str] = []
    held_chars, has_content = 0, False
    held_end = cursor
    for raw in raw_lines(path, offset):
        try:
            line = raw.decode("utf-8-sig" if offset == 0 else "utf-8")
        except UnicodeDecodeError as error:
            raise StageError(f"{path}:{number + 1}: not UTF-8 at byte {error.start + 1} of the line") from error
        if held and held_chars + len(line) > max_chars:
            if has_content:
                yield "".join(held), held_end
            held, held_chars, has_content = [], 0, False
        offset += len(raw)
        number += 1
        held.append(line)
        held_chars += len(line)
        has_content = has_content or not line.isspace()
        held_end = (offset, number)
    if has_content:
        yield "".join(held), held_end
