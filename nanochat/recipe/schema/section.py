"""The base class of all sections of a recipe, with rules such as "exactly one of these fields"."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

CONFLICT = "conflict"
"""The type of Pydantic error that a section with conflicting fields raises."""


@dataclass(frozen=True)
class Conflict:
    """What is wrong with the combination of fields that a section gives."""

    code: str
    message: str
    field: str | None
    """The field to point at, or None if the section gives none of the fields."""


class Section(BaseModel):
    """Base of every section: immutable, strict about types, and without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, strict=True)

    exactly_one: ClassVar[tuple[str, ...]] = ()
    """Fields of which exactly one must be given. In `extends` and `--set` a later one replaces an earlier one."""
    needs: ClassVar[Mapping[str, str]] = {}
    """Fields that are only allowed together with another field, which is one of `exactly_one`."""

    @classmethod
    def conflict(cls, given: Collection[str]) -> Conflict | None:
        """Return what is wrong with a section that gives the fields `given`, or None."""
        chosen = [name for name in cls.exactly_one if name in given]
        if cls.exactly_one and len(chosen) != 1:
            choices = ", ".join(f"`{name}`" for name in cls.exactly_one)
            names = " and ".join(f"`{name}`" for name in chosen) or "none"
            message = f"give exactly one of {choices}; found {names}"
            return Conflict("exactly-one" if chosen else "missing-field", message, chosen[-1] if chosen else None)
        for name, other in cls.needs.items():
            if name in given and other not in given:
                return Conflict("exactly-one", f"`{name}` is only allowed together with `{other}`", name)
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
