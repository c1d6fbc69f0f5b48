"""Batches of rows of a parquet file, read from a cursor on. Memory use does not grow with the size of row groups."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanochat.data.files.cursors import START, Cursor
from nanochat.data.files.formats.json_lines import TOO_DEEP
from nanochat.data.files.formats.readable_file import PLACE_COLUMN, PROBLEM_COLUMN, FileRow, ReadableFile
from nanochat.errors import PreflightError, StageError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_BATCH_ROWS = 256
_READ_BYTES = 1 << 20
JSON_MARK = "\ufdd0"
"""Begins a string of a converted file that is a value of another type as JSON, in a column of values of several types.

It is a noncharacter, as in `readable_file`.
"""


@dataclass(frozen=True)
class UnreadableCell:
    """Takes the place of a value that cannot be read, such as text that is not UTF-8 or a date after the year 9999."""

    reason: str


def open_parquet(file: ReadableFile) -> pq.ParquetFile:
    """Return an open parquet file.

    Raises:
        StageError: the file is damaged.
        PreflightError: the file is missing.
    """
    import pyarrow as pa  # planning imports this module but reads no parquet file
    import pyarrow.parquet as pq

    if not file.path.is_file():
        raise PreflightError(f"{file.name}: no such file")
    with _damage_as_stage_error(file):  # Arrow takes a name that is not UTF-8 only as bytes
        return pq.ParquetFile(pa.OSFile(os.fsencode(file.path)), buffer_size=_READ_BYTES)


def parquet_columns(file: ReadableFile) -> dict[str, pa.DataType]:
    """Return the type of each column of a parquet file by name, without the columns that describe a copy.

    Raises:
        PreflightError, StageError: as `open_parquet`.
    """
    return {field.name: field.type for field in open_parquet(file).schema_arrow if not _is_description(file, field)}


def column_is_nested(file: ReadableFile) -> dict[str, bool]:
    """Return for each column of a parquet file whether its values are lists, maps or structs.

    Raises:
        PreflightError, StageError: as `open_parquet`.
    """
    import pyarrow as pa

    return {name: pa.types.is_nested(kind) for name, kind in parquet_columns(file).items()}


def parquet_batches(
    file: ReadableFile, columns: Sequence[str] | None, cursor: Cursor = START
) -> Iterator[tuple[pa.RecordBatch, Cursor]]:
    """Yield batches of rows from `cursor` on, each with the cursor of its first row; all columns if it is None.

    Of a copy, each batch also has the columns `PLACE_COLUMN` and `PROBLEM_COLUMN`.

    Raises:
        PreflightError, StageError: as `open_parquet`.
    """
    parquet = open_parquet(file)
    selected = list(columns) if columns is not None else None
    if selected is not None and file.is_copy:
        selected += [PLACE_COLUMN, PROBLEM_COLUMN]
    group, skip = cursor[:2]
    with _damage_as_stage_error(file):
        while group < parquet.num_row_groups:
            row = 0
            for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=[group], columns=selected, use_threads=False):
                rest = batch.slice(max(0, skip - row))
                row += batch.num_rows
                if rest.num_rows:
                    yield rest, (group, row - rest.num_rows)
            group, skip = group + 1, 0


class RowPlaces:
    """The places of the rows of a parquet file, for messages."""

    def __init__(self, file: ReadableFile) -> None:
        self._file = file
        self._group_starts: list[int] = []

    def where(self, batch: pa.RecordBatch, cursor: Cursor, index: int) -> str:
        """Return the user's file, and the line or the number of a row in a batch that begins at `cursor`."""
        if self._file.is_copy:
            return f"{self._file.name}{batch.column(PLACE_COLUMN)[index].as_py()}"
        if not self._group_starts:
            metadata = open_parquet(self._file).metadata
            sizes = (metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
            self._group_starts = list(itertools.accumulate(sizes, initial=0))
        group, row = cursor[:2]
        return f"{self._file.name} row {self._group_starts[group] + row + index + 1}"


def parquet_rows(file: ReadableFile, columns: Sequence[str] | None = None) -> Iterator[FileRow]:
    """Yield the rows of a parquet file as dicts of plain Python values; all columns if `columns` is None.

    Raises:
        PreflightError, StageError: as `open_parquet`.
    """
    places = RowPlaces(file)
    for batch, cursor in parquet_batches(file, columns):
        problems = row_problems(file, batch)
        fields = [(i, field.name) for i, field in enumerate(batch.schema) if not _is_description(file, field)]
        values = {name: cells(batch.column(i)) for i, name in fields}
        for row in range(batch.num_rows):
            where, problem = places.where(batch, cursor, row), problems[row]
            yield FileRow(where, {name: column[row] for name, column in values.items()}, problem)


def row_problems(file: ReadableFile, batch: pa.RecordBatch) -> list[str | None]:
    """Return for each row of a batch what the conversion found wrong with it; it has no values then."""
    if not file.is_copy:
        return [None] * batch.num_rows
    return [None if problem is None else str(problem) for problem in batch.column(PROBLEM_COLUMN).to_pylist()]


def _is_description(file: ReadableFile, field: pa.Field[pa.DataType]) -> bool:
    return file.is_copy and field.name in (PLACE_COLUMN, PROBLEM_COLUMN)


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
    except ValueError:
        return text
    except RecursionError:
        return UnreadableCell(TOO_DEEP)


def _cell(value: pa.Scalar[pa.DataType]) -> object:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return UnreadableCell(f"it is not UTF-8 (byte {error.start + 1})")
    except (ValueError, OverflowError, ImportError) as error:
        return UnreadableCell(str(error))


@contextmanager
def _damage_as_stage_error(file: ReadableFile) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if file.is_copy:
            problem = f"its converted copy {file.path} is damaged ({error}); delete it and run again"
        else:
            problem = f"damaged or cut off, not readable as parquet ({error}); download or copy it again"
        raise StageError(f"{file.name}: {problem}") from error
