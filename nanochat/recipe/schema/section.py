"""The base of all recipe sections: frozen, strict, with "exactly one of" rules that merging reads too."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

CONFLICT = "conflict"
"""Pydantic's error type where fields of a section exclude one another."""


@dataclass(frozen=True)
class Conflict:
    """Fields of a section that exclude one another."""

    code: str
    message: str
    field: str | None
    """The field to point at; None where none is given."""


class Section(BaseModel):
    """Base of every section: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, strict=True)

    exactly_one: ClassVar[tuple[str, ...]] = ()
    """Fields of which exactly one must be given; in `extends` and `--set` a later one replaces an earlier one."""
    goes_with: ClassVar[Mapping[str, str]] = {}
    """Field to the one of `exactly_one` without which it means nothing."""

    @classmethod
    def conflict(cls, given: Collection[str]) -> Conflict | None:
        """Return what is wrong with giving just the fields `given` together, or None."""
        chosen = [name for name in cls.exactly_one if name in given]
        if cls.exactly_one and len(chosen) != 1:
            choices = ", ".join(f"`{name}`" for name in cls.exactly_one)
            found = " and ".join(f"`{name}`" for name in chosen) or "none"
            message = f"give exactly one of {choices}; found {found}"
            return Conflict("exactly-one" if chosen else "missing-field", message, chosen[-1] if chosen else None)
        for name, other in cls.goes_with.items():
            if name in given and other not in given:
                return Conflict("exactly-one", f"`{name}` means nothing without `{other}`", name)
        return None

    @model_validator(mode="after")
    def _check_conflict(self) -> Self:
        conflict = self.conflict([name for name in type(self).model_fields if getattr(self, name) is not None])
        if conflict is not None:
            raise PydanticCustomError(CONFLICT, "{message}", {"message": conflict.message})
        return self


class StageSection(Section):
    """Base of the sections that each describe one stage of a run."""

    upstream: ClassVar[tuple[str, ...]] = ()
    """Stages that can provide what this stage starts from. The first of them that the recipe has is used."""
    metrics: ClassVar[tuple[str, ...]] = ()
    """Metrics that `expect` may name, besides the names of an evaluation's suites."""
