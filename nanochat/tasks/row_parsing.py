"""Reads the rows of task data with a parser that refuses rows of another form."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TypeVar

from nanochat.data.sources import SourceSpec, describe
from nanochat.data.task_rows import iter_rows
from nanochat.errors import StageError

_Problem = TypeVar("_Problem")
RowParser = Callable[[dict[str, object], int], _Problem]
"""Takes a row and its number; returns the problem in it, or raises `row_error`."""


def read_rows(
    parse: RowParser[_Problem], source: SourceSpec, split: str, *, base: Path, max_rows: int | None = None
) -> list[_Problem]:
    """Return the problems in the rows of a split, in order, at most `max_rows`.

    Raises:
        PreflightError: the source or the split is missing.
        StageError: `parse` refuses a row; the message names the source and the split.
    """
    rows = islice(iter_rows(source, split, base=base), max_rows)
    try:
        return [parse(row, number) for number, row in enumerate(rows)]
    except StageError as error:
        raise StageError(f"{describe(source)}, split `{split}`: {error}") from error


def row_error(task: str, row: dict[str, object], number: int, expected: str) -> StageError:
    """Return the error that a parser raises for a row without what it must have."""
    return StageError(f"{task}: row {number} must have {expected}; it is {str(row)[:200]}")
