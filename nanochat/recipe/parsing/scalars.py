"""Values of plain (unquoted) scalars in YAML 1.2. PyYAML implements YAML 1.1, which differs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TypeAlias

Scalar: TypeAlias = str | int | float | bool | None

_WORDS: dict[str, Scalar] = {
    **dict.fromkeys(("null", "Null", "NULL", "~", "")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_NUMBERS: dict[str, Callable[[str], float]] = {
    r"[-+]?[0-9]+": int,
    r"0o[0-7]+": lambda written: int(written[2:], 8),
    r"0x[0-9a-fA-F]+": lambda written: int(written[2:], 16),
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?": float,
    r"[-+]?(\.inf|\.Inf|\.INF)": lambda written: float(written.replace(".", "")),
    r"\.nan|\.NaN|\.NAN": lambda _: math.nan,
}
NUMBER = re.compile(f"^(?:{'|'.join(_NUMBERS)})$")
"""Matches the plain scalars that are numbers."""


def resolve_scalar(written: str) -> Scalar:
    """Return the value of a plain scalar by the core schema of YAML 1.2: `1e-4` is a number, `no` and `12:30` are text.

    Source: YAML 1.2.2, section 10.3.2.
    """
    if written in _WORDS:
        return _WORDS[written]
    return next((read(written) for pattern, read in _NUMBERS.items() if re.fullmatch(pattern, written)), written)
