"""Types of single values: counts such as `20M`, sizes such as `16G`, names, and numbers with limits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from nanochat.data.splits import SPLIT_PATTERN

_MAX_COUNT = 10**18


@dataclass(frozen=True)
class _Unit:
    """How a number with a unit is written: digits, a letter for a factor (optional), and an ending (optional)."""

    factors: tuple[tuple[str, int], ...]
    ending: str
    example: str

    @property
    def letters(self) -> str:
        return "".join(letter for letter, _ in self.factors)

    @property
    def pattern(self) -> str:
        """Regular expression with the digits in group 1 and the letter in group 2."""
        return rf"^((?:[0-9]_?){{0,23}}[0-9](?:\.[0-9]{{1,9}})?) *([{self.letters}]?){self.ending}$"


_COUNT = _Unit((("K", 10**3), ("M", 10**6), ("B", 10**9), ("G", 10**9), ("T", 10**12)), "", "20M")
_SIZE = _Unit((("K", 2**10), ("M", 2**20), ("G", 2**30), ("T", 2**40)), "(?:i?B)?", "16G")


def _parse_scaled(value: object, unit: _Unit) -> object:
    """Return text such as `20M`, `1.5K` or `1_000`, or a float such as 2e9, as an int, other values unchanged."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, str):
        return value
    match = re.match(unit.pattern, value.strip())
    if match is None:
        raise ValueError(
            f"write a whole number, with or without a letter as in `{unit.example}` ({', '.join(unit.letters)})"
        )
    scaled = Decimal(match[1].replace("_", "")) * dict(unit.factors).get(match[2], 1)
    if scaled != int(scaled):
        raise ValueError(f"`{value}` is not a whole number")
    return int(scaled)


def number_of(value: object) -> object:
    """Return text that writes a count, such as `20M`, as a number, and every other value unchanged."""
    try:
        return _parse_scaled(value, _COUNT)
    except ValueError:
        return value


@dataclass(frozen=True)
class Scaled:
    """Marks an int from `low` to `high` that can be written with the letter of a factor."""

    low: int
    high: int = _MAX_COUNT
    unit: _Unit = _COUNT

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        number = core_schema.int_schema(strict=True, ge=self.low, le=self.high)
        return core_schema.no_info_before_validator_function(lambda value: _parse_scaled(value, self.unit), number)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        number: dict[str, Any] = {"type": "integer", "minimum": self.low}
        if self.high < _MAX_COUNT:
            number["maximum"] = self.high
        return {"anyOf": [number, {"type": "string", "pattern": self.unit.pattern, "examples": [self.unit.example]}]}


@dataclass(frozen=True)
class LocalPath:
    """Marks a path that is relative to the folder of the recipe file, or to the working directory for a flag.

    With `only_explicit`, only text that starts with `./`, `../`, `/` or `~/` is a path. Other text is a name. With
    `is_pattern`, the path may contain wildcards, so those in the folder's own name are escaped.
    """

    only_explicit: bool = False
    is_pattern: bool = False


Count = Annotated[int, Scaled(1)]
Bytes = Annotated[int, Scaled(1, unit=_SIZE)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
NonEmptyText = Annotated[str, Field(min_length=1)]
MapText = Annotated[
    str,
    Field(
        pattern=r"^([^{}]+|([^{}]|\{\{|\}\})*\{[^{}]+\}([^{}]|\{\{|\}\}|\{[^{}]+\})*)$",
        examples=["{question} {context}", "answer"],
    ),
]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64, examples=["my-name_1"])]
SplitName = Annotated[str, Field(pattern=SPLIT_PATTERN, examples=["train[:500]", "train", "train[-50:]"])]
InitFrom = Annotated[str, LocalPath(only_explicit=True), Field(min_length=1, examples=["./checkpoints/base"])]

_NUMBER = r"-?([0-9]+(\.[0-9]*)?|\.[0-9]+)(e-?[0-9]{1,3})?"
Condition = Annotated[str, Field(pattern=rf"^\s*(<=|>=|<|>|==)\s*{_NUMBER}\s*$", examples=["<= 1.6"])]
