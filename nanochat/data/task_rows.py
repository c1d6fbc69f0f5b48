"""Rows of task data: the parquet and jsonl files of one split of a source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from nanochat.data.files.digests import SeenTexts
from nanochat.data.files.readers import check_file, read_rows
from nanochat.data.ingest.store import readable_files
from nanochat.data.source_splits import row_files
from nanochat.data.sources import SourceSpec, describe
from nanochat.errors import PreflightError


def split_files(spec: SourceSpec, split: str, *, base: Path) -> list[Path]:
    """Return the paths of the files to open for those that `row_files` chooses."""
    return readable_files(row_files(spec, split, base=base).paths, base=base)


def iter_rows(
    spec: SourceSpec, split: str, *, base: Path, columns: Sequence[str] | None = None
) -> Iterator[dict[str, object]]:
    """Yield the rows of a split as dicts of plain Python values, in order; only `columns`, or all if it is None.

    Raises:
        PreflightError: a file, the split or a column is missing, or the split has no rows.
        StageError: a file is damaged, or a line is not an object.
    """
    is_empty = True
    seen = SeenTexts() if spec.dedup == "exact" else None
    for path in split_files(spec, split, base=base):
        for row in read_rows(path, columns):
            is_empty = False
            if seen is None or seen.add(repr(row)):
                yield row
    if is_empty:
        raise PreflightError(f"{describe(spec)}: split `{split}` has no rows")


def first_rows(spec: SourceSpec, split: str, *, base: Path) -> Iterator[tuple[Path, dict[str, object]]]:
    """Yield each file of a split that has rows with its first row.

    Raises:
        PreflightError: the split is missing or has no rows, or a file is missing or cut off.
        StageError: a file is damaged, or its first line is not an object.
    """
    is_empty = True
    for path in split_files(spec, split, base=base):
        check_file(path, ())
        row = next(read_rows(path), None)
        if row is not None:
            is_empty = False
            yield path, row
    if is_empty:
        raise PreflightError(f"{describe(spec)}: split `{split}` has no rows")
