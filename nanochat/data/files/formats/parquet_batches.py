"""Batches of rows of a parquet file, read from a cursor on. Memory use does not grow with the size of row groups."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.data.files.cursors import START, Cursor
from nanochat.errors import PreflightError, StageError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_BATCH_ROWS = 256
_READ_BYTES = 1 << 20
JSON_MARK = "\ufdd0"
"""Begins a string of a converted file that is a value of another type as JSON, in a column of values of several types.

It is a noncharacter, which Unicode reserves for the internal use of a program.
"""


@dataclass(frozen=True)
class UnreadableCell:
    """Takes the place of a value that cannot be read, such as text that is not UTF-8 or a date after the year 9999."""

    reason: str


def open_parquet(path: Path, columns: Sequence[str]) -> pq.ParquetFile:
    """Return an open parquet file that has `columns`.

    Raises:
        StageError: the file is damaged.
        PreflightError: the file or a column is missing.
    """
    import pyarrow.parquet as pq  # planning imports this module but reads no parquet file

    if not path.is_file():
        raise PreflightError(f"{path}: no such file")
    with _damage_as_stage_error(path):
        file = pq.ParquetFile(path, buffer_size=_READ_BYTES)
    names = file.schema_arrow.names
    for column in columns:
        if column not in names:
            raise PreflightError(f"{path}: no column `{column}`; its columns are: {', '.join(names)}")
    return file


def parquet_batches(
    path: Path, columns: Sequence[str] | None, cursor: Cursor = START
) -> Iterator[tuple[pa.RecordBatch, Cursor]]:
    """Yield batches of rows from `cursor` on, each with the cursor of its first row; all columns if it is None.

    Raises:
        PreflightError, StageError: as `open_parquet`.
    """
    file = open_parquet(path, columns or ())
    selected = list(columns) if columns is not None else None
    group, skip = cursor[:2]
    with _damage_as_stage_error(path):
        while group < file.num_row_groups:
            row = 0
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=selected, use_threads=False):
                rest = batch.slice(max(0, skip - row))
                row += batch.num_rows
                if rest.num_rows:
                    yield rest, (group, row - rest.num_rows)
            group, skip = group + 1, 0


def column_is_nested(path: Path) -> dict[str, bool]:
    """Return for each column of a parquet file whether its values are lists, maps or structs.

    Raises:
        PreflightError, StageError: as `open_parquet`.
    """
    import pyarrow as pa

    return {field.name: pa.types.is_nested(field.type) for field in open_parquet(path, ()).schema_arrow}


def parquet_rows(path: Path, columns: Sequence[str] | None) -> Iterator[dict[str, object]]:
    """Yield the rows of a parquet file as plain Python values; all columns if `columns` is None.

    Raises:
        PreflightError, StageError: as `open_parquet`.
    """
    for batch, _ in parquet_batches(path, columns):
        values = {name: cells(batch.column(i)) for i, name in enumerate(batch.schema.names)}
        for row in range(batch.num_rows):
            yield {name: column[row] for name, column in values.items()}


def cells(column: pa.Array[pa.Scalar[pa.DataType]]) -> list[object]:
    """Return the values of a column, with an `UnreadableCell` for each one that has no Python value.

    Marked JSON is decoded, so a column of strings may give values of other types.
    """
    try:
        values = list(column.to_pylist())
    except (ValueError, OverflowError, ImportError):
        values = [_cell(value) for value in column]
    return [_unmarked(value) if isinstance(value, str) and value[:1] == JSON_MARK else value for value in values]


def _unmarked(text: str) -> object:
    """Return the value that a string with the mark stands for; a user's own string with the mark stays as it is."""
    try:
        return json.loads(text[1:])
    except (ValueError, RecursionError):
        return text


def _cell(value: pa.Scalar[pa.DataType]) -> object:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return UnreadableCell(f"it is not UTF-8 (byte {error.start + 1})")
    except (ValueError, OverflowError, ImportError) as error:
        return UnreadableCell(str(error))


@contextmanager
def _damage_as_stage_error(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise StageError(
            f"{path}: damaged or cut off, not readable as parquet ({error}); download or copy it again"
        ) from error
