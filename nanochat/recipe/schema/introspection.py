"""What the schema says about a place in a recipe: its section, the fields allowed there, whether null is a value.

Everything is read from the models of `schema`; no field is named here but the tag `task` of suites.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from nanochat.recipe.schema.recipe import Recipe, Section
from nanochat.recipe.schema.values import LocalPath

TAG = "task"


@dataclass(frozen=True)
class Slot:
    """A place a value may stand in: its type, and the markers and limits that belong to it."""

    annotation: object
    metadata: tuple[object, ...] = ()
    examples: tuple[object, ...] = ()
    drops_null: bool = True
    """Whether null there means "not given"; False where null is a value that differs from the default."""


ROOT = Slot(Recipe)


def child(slot: Slot | None, key: str | int, tag: object = None) -> Slot | None:
    """Return the slot of `key` inside `slot`, or None where the schema knows no such key.

    `tag` is the value of `task` beside the key, which picks the kind of suite.
    """
    if slot is None:
        return None
    section = section_of(slot, tag)
    if section is not None:
        field = section.model_fields.get(str(key))
        return None if field is None else _field_slot(field)
    if (value := map_value(slot)) is not None:
        return Slot(value, slot.metadata)
    for option in _options(slot.annotation):
        if get_origin(option) is tuple and isinstance(key, int):
            return Slot(get_args(option)[0], slot.metadata, drops_null=False)
    return None


def section_of(slot: Slot | None, tag: object = None) -> type[Section] | None:
    """Return the section that belongs into `slot`; of several kinds, the one whose `task` may be `tag`."""
    sections = sections_of(slot)
    if len(sections) <= 1:
        return sections[0] if sections else None
    return next((each for each in sections if tag in _tags_of(each)), None)


def tags(slot: Slot | None) -> tuple[str, ...]:
    """Return the values of `task` that the sections of `slot` know, sorted."""
    return tuple(sorted({str(tag) for each in sections_of(slot) for tag in _tags_of(each)}))


def tags_with(slot: Slot | None, name: str) -> tuple[str, ...]:
    """Return the values of `task` that make `name` a field in `slot`; empty where there is only one kind."""
    sections = sections_of(slot)
    if len(sections) < 2:
        return ()
    return tuple(sorted({str(tag) for each in sections if name in each.model_fields for tag in _tags_of(each)}))


def allowed_fields(slot: Slot | None, tag: object = None) -> tuple[str, ...]:
    """Return the names that may be written in `slot`, sorted; empty for maps with names of the user's own."""
    section = section_of(slot, tag)
    sections = [section] if section is not None else sections_of(slot)
    return tuple(sorted({name for each in sections for name in each.model_fields}))


def map_value(slot: Slot) -> object | None:
    """Return the type of the values where `slot` holds a map with names of the user's own, else None."""
    for option in _options(slot.annotation):
        if get_origin(option) is dict:
            value: object = get_args(option)[1]
            return value
    return None


def is_free_map(slot: Slot | None) -> bool:
    """Return whether `slot` holds a map from any text to a plain value, so that its keys may hold dots."""
    value = None if slot is None else map_value(slot)
    return value is not None and not sections_of(Slot(value))


def local_path(slot: Slot | None) -> LocalPath | None:
    """Return how relative paths are read in `slot`; None where it holds no path."""
    if slot is None:
        return None
    return next((each for each in (*slot.metadata, *_markers(slot.annotation)) if isinstance(each, LocalPath)), None)


def places(name: str) -> frozenset[tuple[str, ...]]:
    """Return the paths of all sections that have a field `name`; names of the user's own show as `NAME`."""
    return frozenset(_all_places().get(name, ()))


@functools.cache
def _all_places() -> dict[str, list[tuple[str, ...]]]:
    """Return the paths by the name of the field: a recipe with hundreds of unknown ones walks the schema once."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for name, path in _places(ROOT, ()):
        found.setdefault(name, []).append(path)
    return found


def json_type(slot: Slot) -> dict[str, Any]:
    """Return the JSON Schema of what may stand in `slot`."""
    whole: Any = Annotated[slot.annotation, *slot.metadata] if slot.metadata else slot.annotation
    schema: dict[str, Any] = TypeAdapter(whole).json_schema()
    if slot.examples:
        schema["examples"] = list(slot.examples)
    return schema


def _places(slot: Slot, path: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    value = map_value(slot)
    if value is not None:
        yield from _places(Slot(value), (*path, "NAME"))
    for section in sections_of(slot):
        for key, field in section.model_fields.items():
            yield key, path
            yield from _places(_field_slot(field), (*path, key))


def _field_slot(field: FieldInfo) -> Slot:
    nullable = type(None) in _options(field.annotation)
    drops_null = not nullable or field.default is None
    return Slot(field.annotation, tuple(field.metadata), tuple(field.examples or ()), drops_null)


def sections_of(slot: Slot | None) -> list[type[Section]]:
    """Return the sections that may stand in `slot`: none, one, or one for each kind of suite."""
    options = () if slot is None else _options(slot.annotation)
    return [each for each in options if isinstance(each, type) and issubclass(each, Section)]


def _markers(annotation: object) -> tuple[object, ...]:
    """Return the markers of a type and of the members of a union."""
    origin = get_origin(annotation)
    own = get_args(annotation)[1:] if origin is Annotated else ()
    inner = get_args(annotation)[:1] if origin is Annotated else ()
    if origin in (Union, types.UnionType):
        inner = get_args(annotation)
    return (*own, *(marker for each in inner for marker in _markers(each)))


def _tags_of(section: type[Section]) -> tuple[object, ...]:
    return get_args(section.model_fields[TAG].annotation) if TAG in section.model_fields else ()


def _options(annotation: object) -> tuple[object, ...]:
    """Return the members of a union, markers taken off; any other type as its only member."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _options(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return tuple(option for each in get_args(annotation) for option in _options(each))
    if origin is Literal:
        return (annotation,)
    return (annotation,)
