"""Rows of a csv, tsv, json, arrow, feather or tar file as Arrow tables of bounded size, always the same for a file.

`datasets` reads csv, tsv, arrow and feather. No text becomes a number, a date or a null.
"""

from __future__ import annotations

import csv
import glob
import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nanochat.data.files.formats.parquet_batches import JSON_MARK
from nanochat.data.ingest.json_values import Row, json_rows
from nanochat.data.ingest.tar_rows import tar_rows
from nanochat.errors import PreflightError

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

_TABLE_ROWS = 1_000
_MAX_QUOTED_CHARS = 1 << 24
_SEPARATORS = {".csv": ",", ".tsv": "\t"}


def read_tables(path: Path, file_format: str, *, first_row: int, scratch: Path) -> Iterator[pa.Table]:
    """Yield the rows of a file that is not compressed, from a row on.

    `file_format` is the suffix of the format, and `scratch` a folder for temporary files.

    Raises:
        PreflightError: the file is damaged; the message gives the place.
        ValueError, OSError, ...: as the libraries raise them.
    """
    match file_format:
        case ".json":
            yield from _row_tables(json_rows(path), first_row)
        case ".csv" | ".tsv":
            yield from _csv_tables(path, _SEPARATORS[file_format], first_row, scratch)
        case ".tar":
            yield from _row_tables(tar_rows(path), first_row)
        case _:
            yield from _tables(_load("arrow", path, scratch), first_row)


def _load(builder: str, path: Path, scratch: Path, **options: object) -> datasets.IterableDataset:
    import datasets

    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)
    # A pattern is expected, so characters such as `[` in the path must be protected.
    files = glob.escape(str(path.absolute()))
    return datasets.load_dataset(
        builder, data_files=files, split="train", streaming=True, cache_dir=str(scratch), **options
    )


def _tables(dataset: datasets.IterableDataset, first_row: int) -> Iterator[pa.Table]:
    for table in dataset.skip(first_row).with_format("arrow").iter(batch_size=_TABLE_ROWS):
        yield table.replace_schema_metadata(None)


def _csv_tables(path: Path, separator: str, first_row: int, scratch: Path) -> Iterator[pa.Table]:
    import datasets

    quoting: Literal[0, 3] = (
        csv.QUOTE_NONE if separator == "\t" and not _is_quoted(path, separator) else csv.QUOTE_MINIMAL
    )
    header = _csv_header(path, separator, quoting)
    if not header:
        return
    yield from _tables(
        _load(
            "csv",
            path,
            scratch,
            sep=separator,
            quoting=quoting,
            features=datasets.Features({name: datasets.Value("string") for name in header}),
            encoding="utf-8-sig",
            keep_default_na=False,
            na_filter=False,
        ),
        first_row,
    )


def _is_quoted(path: Path, separator: str) -> bool:
    """Return whether every field that begins with a quote also ends with one, so that quotes enclose fields."""
    csv.field_size_limit(_MAX_QUOTED_CHARS)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for _ in csv.reader(file, delimiter=separator, strict=True):
                pass
    except csv.Error:
        return False
    return True


def _csv_header(path: Path, separator: str, quoting: Literal[0, 3]) -> list[str]:
    """Return the names of the columns, which the first line gives; none if the file holds no line after it."""
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(itertools.islice(filter(None, csv.reader(file, delimiter=separator, quoting=quoting)), 2))
    if len(rows) < 2:
        return []
    header, first = rows
    if duplicates := sorted({name for name in header if header.count(name) > 1}):
        raise PreflightError(f"{path}:1: the header names a column twice: {', '.join(map(repr, duplicates))}")
    if len(first) > len(header):
        raise PreflightError(f"{path}: the first row has {len(first)} fields, but the header has {len(header)}")
    return header


def _row_tables(rows: Iterator[Row], first_row: int) -> Iterator[pa.Table]:
    rest = itertools.islice(rows, first_row, None)
    while batch := list(itertools.islice(rest, _TABLE_ROWS)):
        yield _table_of_rows(batch)


def _table_of_rows(rows: list[Row]) -> pa.Table:
    import pyarrow as pa

    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: _column([row.get(name) for row in rows]) for name in names})


def _column(values: list[object]) -> pa.Array:
    """Return values of a key as an Arrow array; as strings if Arrow has no type for all of them.

    Strings stay as they are then. The others become JSON, with a mark in front, by which readers recognise them.
    """
    import pyarrow as pa

    try:
        array = pa.array(values)
    except (pa.ArrowException, OverflowError):
        return _as_strings(values)
    return _as_strings(values) if "struct<>" in str(array.type) else array  # parquet cannot hold objects without keys


def _as_strings(values: list[object]) -> pa.Array:
    import pyarrow as pa

    return pa.array(
        [value if value is None or isinstance(value, str) else JSON_MARK + json.dumps(value) for value in values],
        pa.string(),
    )


def locate(path: Path, error: Exception) -> str:
    """Return the place in a file that an error of a library is about, as `file:line` if the line is known."""
    if isinstance(error, UnicodeDecodeError):
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    line.decode()
                except UnicodeDecodeError:
                    return f"{path}:{number}"
    match = re.search(r"\b(?:in line|starting at row) (\d+)", str(error))
    return f"{path}:{match[1]}" if match else str(path)
