"""Batches of rows of a parquet file, read from a cursor on. Memory use does not grow with the size of row groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.data.files.cursors import START, Cursor
from nanochat.errors import PreflightError, StageError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_BATCH_ROWS = 256
_READ_BYTES = 1 << 20


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
    group, skip = cursor
    with _damage_as_stage_error(path):
        while group < file.num_row_groups:
            row = 0
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=selected, use_threads=False):
                rest = batch.slice(max(0, skip - row))
                row += batch.num_rows
                if rest.num_rows:
                    yield rest, (group, row - rest.num_rows)
            group, skip = group + 1, 0


@contextmanager
def _damage_as_stage_error(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise StageError(
            f"{path}: damaged or cut off, not readable as parquet ({error}); download or copy it again"
        ) from error
