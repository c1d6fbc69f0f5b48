"""Parsing for tasks: rows of data into examples, and completions into answers."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import TypeVar

from nanochat.data.sources.source_spec import SourceSpec, describe
from nanochat.data.splits import parse_split
from nanochat.data.task_rows import iter_rows
from nanochat.errors import PreflightError, StageError
from nanochat.tokenizer.pieces import SPECIAL_TOKENS
from nanochat.tools.calculator import read_number

_END = re.compile(r"<\|assistant_end\|>|<\|bos\|>")
_SPECIAL = re.compile("|".join(re.escape(token) for token in SPECIAL_TOKENS))
_FINAL = re.compile(r"####[ \t]*(-?\$?-?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+))(?![.,]?[\w/*^])")
_Problem = TypeVar("_Problem")
RowParser = Callable[[dict[str, object]], _Problem]
"""Takes a row; returns the problem in it, or raises `row_error`."""


def read_rows(
    parse: RowParser[_Problem], source: SourceSpec, split: str, *, base: Path, max_rows: int | None = None
) -> list[_Problem]:
    """Return the problems in the rows of a split, or of a part of one such as `test[:100]`, in order.

    `max_rows` limits how many rows of the whole split are read.

    Raises:
        PreflightError: the source or the split is missing, or its part has no rows.
        StageError: `parse` refuses a row; the message names the source, the split, and the row's place.
    """
    name, bounds = parse_split(split)
    rows = islice(iter_rows(source, name, base=base), max_rows)
    try:
        problems = [row.parse(parse) for row in rows]
    except StageError as error:
        raise StageError(f"{describe(source)}, split `{name}`: {error}") from error
    if bounds is None:
        return problems
    if not problems[bounds]:
        raise PreflightError(f"{describe(source)}: no rows in `{split}`")
    return problems[bounds]


def row_error(task: str, row: dict[str, object], expected: str) -> StageError:
    """Return the error that a parser raises for a row without what it must have."""
    return StageError(f"{task}: a row must have {expected}; it is {str(row)[:200]}")


def strip_special_tokens(completion: str) -> str:
    """Return the text up to the end of the turn, without special tokens and surrounding white space."""
    return _SPECIAL.sub("", _END.split(completion, maxsplit=1)[0]).strip()


def parse_final_number(text: str) -> Decimal | None:
    """Return the number after the first `####`, or None if there is none.

    Thousands commas, a leading $ and a final full stop are ignored (`$1,000.` is 1000). No other number of the text
    counts, and neither does a number that is part of something longer (`10/3`, `10x`).
    """
    start = text.find("####")
    match = _FINAL.match(text, start) if start >= 0 else None
    return None if match is None else read_number(match[1])
