"""Rows of task data: the parquet and jsonl files of one split of a source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from nanochat.data.files.readers import check_file, read_rows
from nanochat.data.sources import SourceSpec, describe, resolve_files
from nanochat.data.splits import splits_of_files
from nanochat.errors import PreflightError

_ROW_SUFFIXES = (".parquet", ".jsonl")


def split_files(spec: SourceSpec, split: str, *, base: Path) -> list[Path]:
    """Return the files of a split. If no file name contains a split, every split consists of all files.

    Raises:
        PreflightError: the source or the split is missing.
    """
    if spec.builtin is not None:
        raise PreflightError(f"{describe(spec)}: has no rows to read; give task data by `path` or `uri`")
    files = [path for path in resolve_files(spec, base=base) if path.suffix in _ROW_SUFFIXES]
    if not files:
        raise PreflightError(f"{describe(spec)}: no {' or '.join(_ROW_SUFFIXES)} file among its files")
    by_split = splits_of_files(files)
    if set(by_split) == {None}:
        return files
    if split not in by_split:
        known = ", ".join(f"{name} ({len(paths)})" for name, paths in by_split.items() if name is not None)
        raise PreflightError(
            f"{describe(spec)}: no file of split `{split}`; its splits (and numbers of files): {known}"
        )
    return by_split[split]


def iter_rows(
    spec: SourceSpec, split: str, *, base: Path, columns: Sequence[str] | None = None
) -> Iterator[dict[str, object]]:
    """Yield the rows of a split as dicts of plain Python values, in order; only `columns`, or all if it is None.

    Raises:
        PreflightError: a file, the split or a column is missing, or the split has no rows.
        StageError: a file is damaged, or a line is not an object.
    """
    is_empty = True
    for path in split_files(spec, split, base=base):
        for row in read_rows(path, columns):
            is_empty = False
            yield row
    if is_empty:
        raise PreflightError(f"{describe(spec)}: split `{split}` has no rows")


def first_rows(spec: SourceSpec, split: str, *, base: Path) -> Iterator[tuple[Path, dict[str, object]]]:
    """Yield each file of a split with its first row.

    Raises:
        PreflightError: the split is missing, or a file is missing, empty or cut off.
        StageError: a file is damaged, or its first line is not an object.
    """
    for path in split_files(spec, split, base=base):
        check_file(path, ())
        row = next(read_rows(path), None)
        if row is None:
            raise PreflightError(f"{path}: the file has no rows")
        yield path, row
