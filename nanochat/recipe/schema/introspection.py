"""Looks up what the schema accepts at a place in a recipe: which section, which fields, and whether null is a value.

Everything is derived from the Pydantic models. The only field that this module names is `task`, which decides the kind
of a suite. It is a word, or a map with one key (`task: {python: FILE}`), which then is the tag.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from nanochat.recipe.schema.field_types import LocalPath
from nanochat.recipe.schema.recipe import Recipe, Section

TAG = "task"


@dataclass(frozen=True)
class Slot:
    """A place for a value: its type, with markers such as `LocalPath` and limits as metadata."""

    annotation: object
    metadata: tuple[object, ...] = ()
    examples: tuple[object, ...] = ()
    drops_null: bool = True
    """True if null means "not given", and False if null is a value that differs from the default."""


ROOT = Slot(Recipe)


def child(slot: Slot | None, key: str | int, tag: object = None) -> Slot | None:
    """Return the slot of `key` inside `slot`, or None if the schema has no such key.

    `tag` is the value of `task` next to the key, which decides the kind of suite.
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
    """Return the section that `slot` accepts: of several kinds, the one for `task: tag`. None if there is none."""
    sections = sections_of(slot)
    if len(sections) <= 1:
        return sections[0] if sections else None
    return next((section for section in sections if tag in _tags_of(section)), None)


def tags(slot: Slot | None, field: str = TAG) -> tuple[str, ...]:
    """Return the sorted values of `task` whose section has the field `field`, among the sections that fit `slot`."""
    sections = [section for section in sections_of(slot) if field in section.model_fields]
    return tuple(sorted({str(tag) for section in sections for tag in _tags_of(section)}))


def allowed_fields(slot: Slot | None, tag: object = None) -> tuple[str, ...]:
    """Return the names of the fields that `slot` accepts, sorted. A map with free keys has none."""
    chosen = section_of(slot, tag)
    sections = [chosen] if chosen is not None else sections_of(slot)
    return tuple(sorted({name for section in sections for name in section.model_fields}))


def map_value(slot: Slot) -> object | None:
    """Return the type of the values if `slot` accepts a map with free keys, else None."""
    for option in _options(slot.annotation):
        if get_origin(option) is dict:
            value: object = get_args(option)[1]
            return value
    return None


def is_free_map(slot: Slot | None) -> bool:
    """Return whether `slot` accepts a map from any text to plain values, whose keys may contain dots."""
    value = None if slot is None else map_value(slot)
    return value is not None and not sections_of(Slot(value))


def local_path(slot: Slot | None) -> LocalPath | None:
    """Return the path marker of `slot`, or None if it does not accept a path."""
    if slot is None:
        return None
    return next((mark for mark in (*slot.metadata, *_markers(slot.annotation)) if isinstance(mark, LocalPath)), None)


@functools.cache
def section_paths() -> dict[str, list[tuple[str, ...]]]:
    """Return the paths of all sections that have a field, by the name of the field. Free keys are called `NAME`."""
    paths: dict[str, list[tuple[str, ...]]] = {}
    for name, path in _fields_with_paths(ROOT, ()):
        paths.setdefault(name, []).append(path)
    return paths


@functools.cache
def json_type(slot: Slot) -> Mapping[str, Any]:
    """Return the JSON Schema of the values that `slot` accepts. A recipe can have hundreds of errors in one slot."""
    whole: Any = Annotated[slot.annotation, *slot.metadata] if slot.metadata else slot.annotation
    schema: dict[str, Any] = TypeAdapter(whole).json_schema()
    if slot.examples:
        schema["examples"] = list(slot.examples)
    return schema


def _fields_with_paths(slot: Slot, path: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    value = map_value(slot)
    if value is not None:
        yield from _fields_with_paths(Slot(value), (*path, "NAME"))
    for section in sections_of(slot):
        for key, field in section.model_fields.items():
            yield key, path
            yield from _fields_with_paths(_field_slot(field), (*path, key))


def _field_slot(field: FieldInfo) -> Slot:
    nullable = type(None) in _options(field.annotation)
    drops_null = not nullable or field.default is None
    return Slot(field.annotation, tuple(field.metadata), tuple(field.examples or ()), drops_null)


def sections_of(slot: Slot | None) -> list[type[Section]]:
    """Return the sections that `slot` accepts: none, one, or one for each kind of suite."""
    options = () if slot is None else _options(slot.annotation)
    return [option for option in options if isinstance(option, type) and issubclass(option, Section)]


def _markers(annotation: object) -> tuple[object, ...]:
    """Return the markers of a type and of the members of a union."""
    origin = get_origin(annotation)
    own = get_args(annotation)[1:] if origin is Annotated else ()
    inner = get_args(annotation)[:1] if origin is Annotated else ()
    if origin in (Union, types.UnionType):
        inner = get_args(annotation)
    return (*own, *(marker for member in inner for marker in _markers(member)))


def _tags_of(section: type[Section]) -> tuple[object, ...]:
    """Return the values of `task` that a section accepts. If it accepts a map, these are the map's keys."""
    if TAG not in section.model_fields:
        return ()
    kinds = sections_of(_field_slot(section.model_fields[TAG]))
    return tuple(kinds[0].model_fields) if kinds else get_args(section.model_fields[TAG].annotation)


def _options(annotation: object) -> tuple[object, ...]:
    """Return the members of a union without their markers, or a tuple with the type itself if it is not a union."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _options(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return tuple(option for member in get_args(annotation) for option in _options(member))
    return (annotation,)
