"""Rows of task data: parquet or jsonl files, those of one split, with errors that name file and line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from nanochat.data.files.readers import START, JsonLine, check_file, json_lines, parquet_batches
from nanochat.data.sources import SourceSpec, describe, resolve_files
from nanochat.data.splits import splits_of_files
from nanochat.errors import PreflightError, StageError

_DATA_SUFFIXES = (".parquet", ".jsonl")


def split_files(spec: SourceSpec, split: str, *, base: Path) -> list[Path]:
    """Return the files that hold `split`, as their names or folders tell.

    Where no file tells any split, all of them serve for every split.

    Raises:
        PreflightError: the source is missing, or tells splits, but not this one.
    """
    if spec.builtin is not None:
        raise PreflightError(f"{describe(spec)}: has no rows to read; give task data by `path` or `uri`")
    files = [path for path in resolve_files(spec, base=base) if path.suffix in _DATA_SUFFIXES]
    if not files:
        raise PreflightError(f"{describe(spec)}: no {' or '.join(_DATA_SUFFIXES)} file among its files")
    found = splits_of_files(files)
    if set(found) == {None}:
        return files
    if split not in found:
        known = ", ".join(f"{name} ({len(paths)})" for name, paths in found.items() if name is not None)
        raise PreflightError(
            f"{describe(spec)}: no file of split `{split}`; its splits (and numbers of files): {known}"
        )
    return found[split]


def iter_rows(
    spec: SourceSpec, split: str, *, base: Path, columns: Sequence[str] | None = None
) -> Iterator[dict[str, object]]:
    """Yield the rows of a split as dicts of plain Python values, in order; only `columns`, or all where None.

    Raises:
        PreflightError: a file, the split or a column is missing.
        StageError: a file is damaged, or a line is not an object.
    """
    count = 0
    for path in split_files(spec, split, base=base):
        rows = _parquet_rows(path, columns) if path.suffix == ".parquet" else _jsonl_rows(path, columns)
        for row in rows:
            count += 1
            yield row
    if count == 0:
        raise PreflightError(f"{describe(spec)}: split `{split}` has no rows")


def first_rows(spec: SourceSpec, split: str, *, base: Path) -> Iterator[tuple[Path, dict[str, object]]]:
    """Yield each file of a split with its first row.

    Raises:
        PreflightError: the split is missing, or a file is missing, empty or cut off.
        StageError: a file is damaged, or its first line is not an object.
    """
    for path in split_files(spec, split, base=base):
        check_file(path, ())
        rows = _parquet_rows(path, None) if path.suffix == ".parquet" else _jsonl_rows(path, None)
        row = next(rows, None)
        if row is None:
            raise PreflightError(f"{path}: the file has no rows")
        yield path, row


def iter_json_lines(spec: SourceSpec, split: str, *, base: Path) -> Iterator[JsonLine]:
    """Yield the lines of a split's jsonl files, bad ones with their problem, for readers that count and go on.

    Raises:
        PreflightError: a file or the split is missing, or a file is not jsonl.
    """
    for path in split_files(spec, split, base=base):
        if path.suffix != ".jsonl":
            raise PreflightError(f"{path}: expected a .jsonl file")
        yield from json_lines(path)


def _parquet_rows(path: Path, columns: Sequence[str] | None) -> Iterator[dict[str, object]]:
    for batch, _ in parquet_batches(path, columns, START):
        yield from batch.to_pylist()


def _jsonl_rows(path: Path, columns: Sequence[str] | None) -> Iterator[dict[str, object]]:
    for line in json_lines(path):
        if line.problem is not None:
            raise StageError(f"{line.where()}: {line.problem}")
        row = line.value
        if not isinstance(row, dict):
            raise StageError(f"{line.where()}: expected an object, found {type(row).__name__}")
        for column in columns or ():
            if column not in row:
                raise PreflightError(f"{line.where()}: no key `{column}`; its keys are: {', '.join(map(str, row))}")
        yield row if columns is None else {column: row[column] for column in columns}
