"""Values of plain (unquoted) scalars in YAML 1.2. PyYAML implements YAML 1.1, which differs."""

from __future__ import annotations

import re
from typing import TypeAlias

Scalar: TypeAlias = str | int | float | bool | None

_NULL = re.compile(r"null|Null|NULL|~|")
_TRUE = re.compile(r"true|True|TRUE")
_FALSE = re.compile(r"false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INF = re.compile(r"[-+]?(\.inf|\.Inf|\.INF)")
_NAN = re.compile(r"\.nan|\.NaN|\.NAN")
NUMBER = re.compile(f"^(?:{'|'.join(part.pattern for part in (_INT, _OCTAL, _HEX, _FLOAT, _INF, _NAN))})$")
"""Matches the plain scalars that are numbers."""


def resolve_scalar(written: str) -> Scalar:
    """Return the value of a plain scalar by the core schema of YAML 1.2: `1e-4` is a number, `no` and `12:30` are text.

    Source: YAML 1.2.2, section 10.3.2.
    """
    if _NULL.fullmatch(written):
        return None
    if _TRUE.fullmatch(written):
        return True
    if _FALSE.fullmatch(written):
        return False
    if _INT.fullmatch(written):
        return int(written)
    if _OCTAL.fullmatch(written):
        return int(written[2:], 8)
    if _HEX.fullmatch(written):
        return int(written[2:], 16)
    if _FLOAT.fullmatch(written):
        return float(written)
    if _INF.fullmatch(written):
        return float(written.replace(".", "").lower())
    return float("nan") if _NAN.fullmatch(written) else written
