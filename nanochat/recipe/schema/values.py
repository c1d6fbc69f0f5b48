"""Types of single recipe values: counts such as `20M`, sizes such as `16G`, names, bounded numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from nanochat.data.splits import SPLIT_PATTERN

_MOST = 10**18


@dataclass(frozen=True)
class Unit:
    """How a scaled number is written: digits, an optional factor letter, an optional ending."""

    factors: tuple[tuple[str, int], ...]
    ending: str
    example: str

    @property
    def letters(self) -> str:
        """The factor letters, ascending."""
        return "".join(letter for letter, _ in self.factors)

    @property
    def pattern(self) -> str:
        """Regular expression of the text, digits in group 1 and the letter in group 2."""
        return rf"^((?:[0-9]_?){{0,23}}[0-9](?:\.[0-9]{{1,9}})?) *([{self.letters}]?){self.ending}$"


_COUNT = Unit((("K", 10**3), ("M", 10**6), ("B", 10**9), ("G", 10**9), ("T", 10**12)), "", "20M")
_SIZE = Unit((("K", 2**10), ("M", 2**20), ("G", 2**30), ("T", 2**40)), "(?:i?B)?", "16G")


def parse_scaled(value: object, unit: Unit) -> object:
    """Return `20M`, `1.5K`, `1_000` or `2e9` as an int; what is neither text nor a whole float passes on.

    Raises ValueError for text that is no such number, or that does not come to a whole one.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, str):
        return value
    match = re.match(unit.pattern, value.strip())
    if match is None:
        raise ValueError(f"write a whole number, or one like `{unit.example}` ({', '.join(unit.letters)})")
    scaled = Decimal(match[1].replace("_", "")) * dict(unit.factors).get(match[2], 1)
    if scaled != int(scaled):
        raise ValueError(f"`{value}` does not come to a whole number")
    return int(scaled)


@dataclass(frozen=True)
class Scaled:
    """Marks an int between `low` and `high` that may be written with a factor letter."""

    low: int
    high: int = _MOST
    unit: Unit = _COUNT

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        number = core_schema.int_schema(strict=True, ge=self.low, le=self.high)
        return core_schema.no_info_before_validator_function(lambda value: parse_scaled(value, self.unit), number)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        number: dict[str, Any] = {"type": "integer", "minimum": self.low}
        if self.high < _MOST:
            number["maximum"] = self.high
        return {"anyOf": [number, {"type": "string", "pattern": self.unit.pattern, "examples": [self.unit.example]}]}


@dataclass(frozen=True)
class LocalPath:
    """Marks a field whose relative paths start at the file that wrote them (for a flag: at the working directory).

    With `only_explicit`, text is a path only where it begins with `./`, `../`, `/` or `~/`; else it is a name.
    """

    only_explicit: bool = False


Count = Annotated[int, Scaled(1)]
Bytes = Annotated[int, Scaled(1, unit=_SIZE)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
NonEmptyText = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64, examples=["my-name_1"])]
SplitName = Annotated[str, Field(pattern=SPLIT_PATTERN, examples=["train[:500]", "train", "train[-50:]"])]
InitFrom = Annotated[str, LocalPath(only_explicit=True), Field(min_length=1, examples=["./checkpoints/base"])]

_NUMBER = r"-?([0-9]+(\.[0-9]*)?|\.[0-9]+)(e-?[0-9]{1,3})?"
Condition = Annotated[str, Field(pattern=rf"^\s*(<=|>=|<|>|==)\s*{_NUMBER}\s*$", examples=["<= 1.6"])]
