"""The recipe reference in the README: every section and field, written from the schema and checked for freshness."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from nanochat.recipe.check.phrases import expected
from nanochat.recipe.schema.section import Section
from nanochat.recipe.schema.walk import ROOT, Slot, allowed_fields, child, map_value, section_of, sections_of, tags
from nanochat.storage.files import write_text

BEGIN = "<!-- recipe reference: written by `just schemas` -->"
END = "<!-- end of the recipe reference -->"


def reference_text() -> str:
    """Return the reference as markdown: one table for each section that a recipe may hold."""
    return "\n\n".join(_tables(ROOT, ""))


def update_reference(readme: Path) -> None:
    """Replace what stands between the marks of `readme` by the reference."""
    before, _, after = _split(readme)
    write_text(readme, f"{before}{BEGIN}\n\n{reference_text()}\n\n{END}{after}")


def reference_is_fresh(readme: Path) -> bool:
    """Return whether `readme` holds the reference that `update_reference` would write."""
    return _split(readme)[1].strip() == reference_text().strip()


def _split(readme: Path) -> tuple[str, str, str]:
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    inside, _, after = rest.partition(END)
    return before, inside, after


def _tables(slot: Slot, path: str) -> Iterator[str]:
    """Yield the tables of the sections in `slot` and, depth first, of those inside them."""
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
    words = tags(Slot(section))
    title = f"`{path}`" if path else "Top level"
    if words:
        title += " with `task: " + " | ".join(words) + "`"
    rows = [
        f"| `{name}` | {_takes(section, slot, name)} | {_default(field)} | {_one_line(field.description or '')} |"
        for name, field in section.model_fields.items()
    ]
    heading = [f"#### {title}", "", _one_line(section.__doc__ or ""), ""]
    return "\n".join([*heading, "| field | takes | default | meaning |", "|---|---|---|---|", *rows])


def _takes(section: type[Section], slot: Slot, name: str) -> str:
    inner = child(slot, name, _tag(section))
    assert inner is not None, "a field of the section"
    if section_of(inner) is not None:
        return "a section"
    if allowed_fields(inner):
        return "a section"
    return expected(inner).replace("|", "\\|")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value: Any = field.default
    if value is None or isinstance(value, Section) or value in ({}, (), ""):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
