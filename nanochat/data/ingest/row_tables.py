"""Rows found in a file, as Arrow tables of bounded size that also hold the place of each row and what is wrong with it.

A bad row stays in the tables, with its problem instead of values, so that each reading of the copy finds it again.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanochat.data.files.formats.json_lines import HALF_PAIR, TOO_DEEP, long_number
from nanochat.data.files.formats.parquet_batches import JSON_MARK
from nanochat.data.files.formats.readable_file import PLACE_COLUMN, PROBLEM_COLUMN

if TYPE_CHECKING:
    import pyarrow as pa

TABLE_ROWS = 1_000
_TABLE_CHARS = 1 << 24
"""A table is complete once its rows take this much of the file, because a row may be a conversation of a megabyte."""
_MAX_NESTING_OF_COLUMN = 50
"""Arrow reads no file whose columns are nested much deeper."""
_MAX_KEYS_OF_COLUMN = 200
"""Objects with more keys in all, such as one that holds a thousand messages by their ids, are kept as JSON. As columns
of their own, each key would need a value in every row."""
_MAX_NESTING = 500
"""Python reads and writes no JSON that is nested much deeper."""

Row = dict[str, object]


@dataclass(frozen=True)
class FoundRow:
    """A row of a file, or `problem`, which says why it has no values. `place` follows the file's path: `:7`."""

    place: str
    values: Row
    problem: str | None = None
    chars: int = 0
    """The length of the row in the file, if it may be long."""


class UnreadableFileError(Exception):
    """A file, or the rest of it, has no rows that can be found. The message is the place in it, and what is wrong."""


class LongNumber:
    """Takes the place of an integer with too many digits to be read."""


def read_integer(digits: str) -> int | LongNumber:
    """Return an integer, for JSON decoders."""
    try:
        return int(digits)
    except ValueError:
        return LongNumber()


def row_tables(rows: Iterator[FoundRow], first_row: int) -> Iterator[pa.Table]:
    """Yield the rows from a row on. A row that cannot be stored becomes a bad row."""
    for batch in _batches(itertools.islice(rows, first_row, None)):
        try:
            table = _table([row.values for row in batch])
        except (UnicodeEncodeError, RecursionError, TypeError):
            batch = [_checked(row) for row in batch]
            table = _table([row.values for row in batch])
        yield with_places(table, [row.place for row in batch], [row.problem for row in batch])


def _batches(rows: Iterator[FoundRow]) -> Iterator[list[FoundRow]]:
    batch: list[FoundRow] = []
    chars = 0
    for row in rows:
        batch.append(row)
        chars += row.chars
        if len(batch) == TABLE_ROWS or chars >= _TABLE_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def with_places(table: pa.Table, places: Sequence[str], problems: Sequence[str | None] | None = None) -> pa.Table:
    """Return a table with the columns that say where each row lies and what is wrong with it, if anything."""
    import pyarrow as pa

    table = table.append_column(PLACE_COLUMN, pa.array(places, pa.string()))
    refused = pa.nulls(len(places), pa.string()) if problems is None else pa.array(problems, pa.string())
    return table.append_column(PROBLEM_COLUMN, refused)


def _checked(row: FoundRow) -> FoundRow:
    """Return the row, without its values if Arrow or JSON cannot hold them."""
    try:
        if _nesting(row.values) > _MAX_NESTING:
            return FoundRow(row.place, {}, TOO_DEEP)
        json.dumps(row.values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        is_byte = "\udc80" <= error.object[error.start] <= "\udcff"  # as `streams.open_text` marks bytes
        problem = "not UTF-8: save the file as UTF-8" if is_byte else HALF_PAIR
    except TypeError:  # a LongNumber
        problem = long_number()
    else:
        return row
    return FoundRow(row.place, {}, problem)


def _table(rows: Sequence[Row]) -> pa.Table:
    import pyarrow as pa

    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: _column([row.get(name) for row in rows]) for name in names}
    return pa.table(columns) if columns else pa.table({"": pa.nulls(len(rows))}).select([])


def _column(values: list[object]) -> pa.Array:
    """Return values of a key as an Arrow array; as strings if Arrow has no type for all of them, or one of many keys.

    Strings stay as they are then. The others become JSON, with a mark in front, by which readers recognise them.
    """
    import pyarrow as pa

    if len(set().union(*(value for value in values if isinstance(value, dict)))) > _MAX_KEYS_OF_COLUMN:
        return _as_strings(values)
    try:
        array = pa.array(values)
    except (pa.ArrowException, OverflowError):
        return _as_strings(values)
    # Parquet cannot hold objects without keys.
    depth, keys = _size_of_type(array.type)
    is_storable = "struct<>" not in str(array.type) and depth <= _MAX_NESTING_OF_COLUMN and keys <= _MAX_KEYS_OF_COLUMN
    return array if is_storable else _as_strings(values)


def _as_strings(values: list[object]) -> pa.Array:
    import pyarrow as pa

    texts = [value if value is None or isinstance(value, str) else JSON_MARK + _as_json(value) for value in values]
    return pa.array(texts, pa.string())


def _as_json(value: object) -> str:
    if _nesting(value) > _MAX_NESTING:
        raise RecursionError
    # Without escapes: Arrow must see half of a surrogate pair, which it refuses.
    return json.dumps(value, ensure_ascii=False)


def _nesting(value: object) -> int:
    """Return how deep lists and objects are nested in a value."""
    values, depth = [value], 0
    while values := [
        item
        for inner in values
        if isinstance(inner, list | dict)
        for item in (inner.values() if isinstance(inner, dict) else inner)
    ]:
        depth += 1
    return depth


def _size_of_type(kind: pa.DataType) -> tuple[int, int]:
    """Return how deep lists and objects are nested in a type, and how many keys and lists it has in all."""
    kinds, depth, keys = [kind], 0, 0
    while kinds := [inner.field(i).type for inner in kinds for i in range(inner.num_fields)]:
        depth += 1
        keys += len(kinds)
    return depth, keys
