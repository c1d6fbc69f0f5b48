"""The base class of all sections of a recipe, with rules such as "exactly one of these fields"."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic._internal._model_construction import ModelMetaclass
from pydantic_core import PydanticCustomError

CONFLICT = "conflict"
"""The type of Pydantic error that a section with conflicting fields raises."""


@dataclass(frozen=True)
class Conflict:
    """A problem with the combination of fields that a section gives."""

    code: str
    message: str
    field: str | None
    """The field to point at, or None if the section gives none of the fields."""


def _add_descriptions(schema: dict[str, Any], section: type[Section]) -> None:
    for name, text in section.descriptions().items():
        schema["properties"][name]["description"] = text


class _Hidden:
    """An attribute that does not exist, although a base class has it."""

    def __get__(self, owner: object, kind: type) -> Any:
        raise AttributeError


class _SectionType(ModelMetaclass):
    """The class of sections. One of them has a field with the name of a method of classes, which Pydantic forbids."""

    register = _Hidden()


class Section(BaseModel, metaclass=_SectionType):
    """Base of every section: immutable, strict about types, and without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, json_schema_extra=_add_descriptions)

    exactly_one: ClassVar[tuple[str, ...]] = ()
    """Fields of which exactly one must be given. In `extends` and `--set` a later one replaces an earlier one."""
    needs: ClassVar[Mapping[str, str]] = {}
    """Fields that are only allowed together with another field, which is one of `exactly_one`."""

    @classmethod
    @functools.cache
    def descriptions(cls) -> dict[str, str]:
        """Return the text below each field, read from the source code.

        Pydantic's `use_attribute_docstrings` would read it at import, a fifth of the CPU time of `nanochat-run check`.
        """
        texts = {}
        for section in reversed(cls.__mro__[: cls.__mro__.index(Section)]):
            (definition,) = ast.parse(inspect.getsource(section)).body
            assert isinstance(definition, ast.ClassDef), f"{section} is a class"
            for statements in itertools.pairwise(definition.body):
                match statements:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                        texts[name] = inspect.cleandoc(text)
        return {name: texts[name] for name in cls.model_fields if name in texts}

    @classmethod
    def conflict(cls, given: Collection[str]) -> Conflict | None:
        """Return the problem with a section that gives the fields `given`, or None."""
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
    counts: ClassVar[tuple[str, ...]] = ()
    """Other results of the stage, whose names a suite cannot have either."""
