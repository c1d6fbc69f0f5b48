"""Rows of a csv, tsv, json, arrow, feather or tar file as Arrow tables of bounded size, always the same for a file.

`datasets` reads arrow and feather. No text becomes a number, a date or a null.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.data.ingest.csv_rows import csv_rows
from nanochat.data.ingest.json_values import json_rows
from nanochat.data.ingest.row_tables import TABLE_ROWS, row_tables, with_places
from nanochat.data.ingest.tar_rows import tar_rows

if TYPE_CHECKING:
    import pyarrow as pa


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
