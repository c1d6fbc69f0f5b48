"""Extracts the answer from a completion: its text without special tokens, or the number after `####`."""

from __future__ import annotations

import re
from decimal import Decimal

from nanochat.tokenizer.pieces import SPECIAL_TOKENS
from nanochat.tools.calculator import read_number

_END = re.compile(r"<\|assistant_end\|>|<\|bos\|>")
_SPECIAL = re.compile("|".join(re.escape(token) for token in SPECIAL_TOKENS))
_FINAL = re.compile(r"####[ \t]*(-?\$?-?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+))(?![.,]?[\w/*^])")


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
