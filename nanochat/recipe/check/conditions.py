"""Conditions on the fields of a sweep: `model.n_layer <= 4 or pretrain.horizon.tokens >= 1M`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from nanochat.recipe.parsing.scalars import resolve_scalar
from nanochat.recipe.schema.field_types import number_of
from nanochat.recipe.schema.suggestions import did_you_mean

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
_COMPARISON = re.compile(r"\s*([^\s<>=!]+)\s*(<=|>=|==|!=|<|>)\s*(\"[^\"]*\"|'[^']*'|[^\s<>=!]+)\s*")
_ALTERNATIVES = re.compile(r"\sor\s")
_FORM = (
    "write `FIELD <= VALUE`, with one of <=, >=, <, >, == and !=; join alternatives by `or`, and write conditions that "
    "must all hold as a list"
)


class ConditionError(Exception):
    """A condition cannot be understood, or not be applied to a cell."""

    def __init__(self, message: str, help: str) -> None:  # noqa: A002
        super().__init__(message)
        self.help = help


@dataclass(frozen=True)
class _Comparison:
    field: str
    operator: str
    other: object
    is_field: bool
    """Whether `other` is the path of a field, and not a value."""

    def is_met(self, values: Mapping[str, object]) -> bool:
        left = number_of(values[self.field])
        right = number_of(values[str(self.other)] if self.is_field else self.other)
        if self.operator not in ("==", "!=") and not (_is_number(left) and _is_number(right)):
            message = f"`{self.field} {self.operator} {self.other}` compares {left!r} with {right!r}"
            raise ConditionError(message, "only numbers are smaller or larger; use == or !=")
        return _OPERATORS[self.operator](left, right)


@dataclass(frozen=True)
class Condition:
    """Comparisons of which one must hold."""

    comparisons: tuple[_Comparison, ...]

    def is_met(self, values: Mapping[str, object]) -> bool:
        """Return whether a combination of values meets the condition. Raises ConditionError if they do not compare."""
        return any(comparison.is_met(values) for comparison in self.comparisons)


def parse_condition(text: str, fields: Collection[str]) -> Condition:
    """Return the condition that a text expresses about some of the `fields`, which are dotted paths.

    Raises ConditionError if it has another form, or names another field.
    """
    return Condition(tuple(_parse_comparison(part, fields) for part in _ALTERNATIVES.split(text)))


def _parse_comparison(text: str, fields: Collection[str]) -> _Comparison:
    match = _COMPARISON.fullmatch(text)
    if match is None:
        raise ConditionError(f"`{text.strip()}` is not a comparison", _FORM)
    field, symbol, written = match.groups()
    if field not in fields:
        help_ = did_you_mean(field, fields) or "conditions are about fields of `over` and `zip`"
        raise ConditionError(f"`{field}` is not a field of this sweep", help_)
    if written in fields:
        return _Comparison(field, symbol, written, is_field=True)
    value = written[1:-1] if written[0] in "\"'" else resolve_scalar(written)
    return _Comparison(field, symbol, value, is_field=False)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
