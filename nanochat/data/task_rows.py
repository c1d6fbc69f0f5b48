"""Rows of task data: the parquet and jsonl files of one split of a source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from nanochat.data.files.content_checks import check_file
from nanochat.data.files.digests import SeenTexts
from nanochat.data.files.formats.readable_file import ReadableFile
from nanochat.data.files.readers import read_rows
from nanochat.data.ingest.store import readable_files
from nanochat.data.source_splits import row_files
from nanochat.data.sources.source_spec import SourceSpec, describe
from nanochat.errors import PreflightError, StageError

Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class TaskRow:
    """A row with its place: the user's file, and the line or number in it."""

    where: str
    values: dict[str, object]

    def parse(self, parse: Callable[[dict[str, object]], Parsed]) -> Parsed:
        """Return the result of `parse` for the values. The message of a StageError that it raises gets the place."""
        try:
            return parse(self.values)
        except StageError as error:
            raise StageError(f"{self.where}: {error}") from error


def split_files(spec: SourceSpec, split: str, *, base: Path) -> list[ReadableFile]:
    """Return the files to open for those that `row_files` chooses."""
    return readable_files(row_files(spec, split, base=base).paths, base=base)


def iter_rows(spec: SourceSpec, split: str, *, base: Path) -> Iterator[TaskRow]:
    """Yield the rows of a split, in order, as dicts of plain Python values.

    Raises:
        PreflightError: a file or the split is missing, or the split has no rows.
        StageError: a file is damaged, or a row is not an object or cannot be read.
    """
    is_empty = True
    seen = SeenTexts() if spec.dedup == "exact" else None
    for file in split_files(spec, split, base=base):
        for where, values in read_rows(file):
            is_empty = False
            if seen is None or seen.add(repr(values)):
                yield TaskRow(where, values)
    if is_empty:
        raise PreflightError(f"{describe(spec)}: split `{split}` has no rows")


def first_rows(spec: SourceSpec, split: str, *, base: Path) -> Iterator[TaskRow]:
    """Yield the first row of each file of a split that has rows.

    Raises:
        PreflightError: the split is missing or has no rows, or a file is missing or cut off.
        StageError: a file is damaged, or its first row is not an object or cannot be read.
    """
    is_empty = True
    for path in row_files(spec, split, base=base).paths:
        check_file(path)
        rows = (row for file in readable_files([path], base=base) for row in read_rows(file))
        for where, values in islice(rows, 1):
            is_empty = False
            yield TaskRow(where, values)
    if is_empty:
        raise PreflightError(f"{describe(spec)}: split `{split}` has no rows")
