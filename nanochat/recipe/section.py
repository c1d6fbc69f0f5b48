"""The base of all recipe sections: frozen, strict, with "exactly one of" rules that merging reads too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """Base of every section: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, strict=True)

    exactly_one: ClassVar[tuple[str, ...]] = ()
    """Fields of which exactly one must be given; in `extends` and `--set` a later one replaces an earlier one."""
    goes_with: ClassVar[Mapping[str, str]] = {}
    """Field to the one of `exactly_one` without which it means nothing."""

    @model_validator(mode="after")
    def _check_exactly_one(self) -> Self:
        given = [name for name in self.exactly_one if getattr(self, name) is not None]
        if self.exactly_one and len(given) != 1:
            choices = ", ".join(f"`{name}`" for name in self.exactly_one)
            found = " and ".join(f"`{name}`" for name in given) or "none"
            message = "give exactly one of {choices}; found {found}"
            raise PydanticCustomError("exactly_one", message, {"choices": choices, "found": found, "given": given})
        for name, other in self.goes_with.items():
            if getattr(self, name) is not None and getattr(self, other) is None:
                message = "`{name}` means nothing without `{other}`"
                raise PydanticCustomError("goes_with", message, {"name": name, "other": other})
        return self
