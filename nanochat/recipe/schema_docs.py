"""The recipe reference: a markdown page of all sections and fields, generated from the schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

from nanochat.recipe.check.descriptions import describe_type
from nanochat.recipe.schema.introspection import ROOT, Slot, child, map_value, sections_of, tags
from nanochat.recipe.schema.section import Section

_INTRODUCTION = """\
# Recipe reference

All sections and fields of a recipe, with their types, defaults and meanings. A section appears under the path at which
you write it, and `NAME` stands for a name of your own choice. Any value can also be given on the command line, as in
`nanochat-run RECIPE --set pretrain.horizon.steps=100`. Counts accept the letters K, M, B, G and T (`20M` is
20,000,000), and sizes in bytes accept K, M, G and T as powers of 1024 (`16G`). The command `just schemas` generates
this page from `nanochat/recipe/schema/`, together with the JSON Schema that lets editors complete and check recipes
([recipe.schema.json](recipe.schema.json)).
"""


def reference_text() -> str:
    """Return the reference page as markdown, with one table for each section of a recipe."""
    return "\n".join([_INTRODUCTION, "\n\n".join(_tables(ROOT, "")), ""])


def _tables(slot: Slot, path: str) -> Iterator[str]:
    """Yield the tables of the sections that `slot` accepts, each followed by the tables of the sections inside it."""
    for section in sections_of(slot):
        yield _table(section, slot, path)
        for name in section.model_fields:
            inner = child(slot, name, _tag(section))
            assert inner is not None, "a field of the section"
            value = map_value(inner)
            where = f"{path}.{name}" if path else name
            if value is not None:
                yield from _tables(Slot(value), f"{where}.NAME")
            elif sections_of(inner):
                yield from _tables(inner, where)


def _tag(section: type[Section]) -> object:
    return next(iter(tags(Slot(section))), None)


def _table(section: type[Section], slot: Slot, path: str) -> str:
    title = f"`{path}`" if path else "Top level"
    if tasks := tags(Slot(section)):
        title += " with `task: " + " | ".join(tasks) + "`"
    meanings = section.descriptions()
    rows = [
        f"| `{name}` | {_type(section, slot, name)} | {_default(field)} | {_one_line(meanings.get(name, ''))} |"
        for name, field in section.model_fields.items()
    ]
    heading = [f"## {title}", "", _one_line(section.__doc__ or ""), ""]
    return "\n".join([*heading, "| field | type | default | meaning |", "|---|---|---|---|", *rows])


def _type(section: type[Section], slot: Slot, name: str) -> str:
    inner = child(slot, name, _tag(section))
    assert inner is not None, "a field of the section"
    if sections_of(inner):
        return "a section"
    return describe_type(inner).replace("|", "\\|")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value: Any = field.default
    if value is None or isinstance(value, Section) or value in ({}, (), ""):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
