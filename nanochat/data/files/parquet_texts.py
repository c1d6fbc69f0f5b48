"""Texts in a column of a parquet file. A file without the column, or without text in it, is one bad row."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from nanochat.data.files.bad_rows import RowProblems
from nanochat.data.files.cursors import Cursor
from nanochat.data.files.formats.json_lines import SHOWN_KEYS
from nanochat.data.files.formats.parquet_batches import (
    RowPlaces,
    UnreadableCell,
    cells,
    open_parquet,
    parquet_batches,
    parquet_columns,
    row_problems,
)
from nanochat.data.files.formats.readable_file import ReadableFile
from nanochat.data.splits import SPLIT_KEYS, held_out_by
from nanochat.plurals import list_names

if TYPE_CHECKING:
    import pyarrow as pa


def parquet_texts(
    file: ReadableFile, column: str, cursor: Cursor, problems: RowProblems, *, keeps_held_out: bool
) -> Iterator[tuple[str, Cursor]]:
    """Yield the texts of a parquet file, as `readers.read_texts` does."""
    columns = parquet_columns(file)
    if (problem := _column_problem(file, column, columns)) is not None:
        yield from _whole_file_is_bad(file, problem, cursor, problems)
        return
    places = RowPlaces(file)
    bad = counted = cursor[2]
    end = cursor
    split_keys = [] if keeps_held_out else _split_keys(column, columns)
    for batch, start in parquet_batches(file, [column, *split_keys], cursor):
        refused = row_problems(file, batch)
        splits = {key: cells(batch.column(key)) for key in split_keys}
        for i, text in enumerate(cells(batch.column(column)) if columns else [None] * batch.num_rows):
            end = (start[0], start[1] + i + 1, bad)
            if splits and (reason := held_out_by({key: values[i] for key, values in splits.items()})) is not None:
                problems.add_held_out(reason, functools.partial(places.where, batch, start, i))
                continue
            if isinstance(text, str) and text and not text.isspace():
                yield text, end
                counted = bad
                continue
            where = functools.partial(places.where, batch, start, i)
            problem = refused[i] or _problem_of_cell(column, text)
            if problem is None:
                problems.add_empty(where)
                continue
            bad += 1
            end = (*end[:2], bad)
            problems.add_bad(f"{where()}: {problem}", bad)
    if bad > counted:
        yield "", end


def _split_keys(column: str, columns: Mapping[str, pa.DataType]) -> list[str]:
    """Return the columns that may name the split of a row."""
    return [key for key in SPLIT_KEYS if key != column and key in columns and _is_text(columns[key])]


def _whole_file_is_bad(
    file: ReadableFile, problem: str, cursor: Cursor, problems: RowProblems
) -> Iterator[tuple[str, Cursor]]:
    """Add the file to `problems`, unless `cursor` is after it, and yield an empty text with the cursor that counts it.

    A file without rows is no problem. The message places the first row of a part of a copy, which may have others.
    """
    metadata, bad = open_parquet(file).metadata, cursor[2] + 1
    end = (metadata.num_row_groups, 0, bad)
    if metadata.num_rows == 0 or cursor[:2] >= end[:2]:
        return
    name = str(file.name)
    if file.is_copy:
        batch, start = next(parquet_batches(file, []))
        name = RowPlaces(file).where(batch, start, 0)
    problems.add_bad_file(f"{name}: {problem}; all its rows ({metadata.num_rows:,}) are left out", bad)
    yield "", end


def _column_problem(file: ReadableFile, column: str, columns: Mapping[str, pa.DataType]) -> str | None:
    """Return why the whole file has no text in a column, None if it may have some.

    The columns of a copy have the types that their values happen to have, so its values are judged one by one. It has
    no columns if all its rows are bad.
    """
    if file.is_copy and not columns:
        return None
    if column not in columns:
        return f"no column `{column}`; its columns are: {list_names(columns, most=SHOWN_KEYS)}"
    if not file.is_copy and not _is_text(columns[column]):
        return f"column `{column}` holds {columns[column]}, not text"
    return None


def _problem_of_cell(column: str, value: object) -> str | None:
    """Return the problem with a value that is no text, None for null and blank text."""
    if value is None or isinstance(value, str):
        return None
    if isinstance(value, UnreadableCell):
        return f"`{column}` cannot be read: {value.reason}"
    if isinstance(value, list | dict):
        return f"`{column}` is not text but {'a list' if isinstance(value, list) else 'an object'}"
    return f"`{column}` is not text: `{json.dumps(value, default=str)[:50]}`"


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_null(kind):  # every row is without text
        return True
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
