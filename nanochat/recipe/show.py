"""Prints a loaded recipe with its defaults, with the origin of each value, or as the difference from another recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from nanochat.recipe.load import LoadedRecipe
from nanochat.recipe.merge.tree import KeyPath
from nanochat.recipe.merge.variables import escape
from nanochat.recipe.parsing.flow import flow_text
from nanochat.recipe.schema.recipe import Recipe, Section

Value: TypeAlias = "str | int | float | bool | dict[str, Value] | list[Value] | None"

_MERGED_FIELDS = ("extends", "vars")
_SHOWN_NULLS = ("sample_every_steps",)
"""If these fields are null by default, that is written, too: beside `prompts` it says that no samples are wanted."""
_COMMENT_COLUMN = 48


def resolved_yaml(loaded: LoadedRecipe) -> str:
    """Return the recipe with all defaults as YAML. Loading that YAML gives the same recipe."""
    return "".join(f"{line}\n" for line, _ in _lines(_recipe_values(loaded.recipe), ()))


def yaml_with_origins(loaded: LoadedRecipe) -> str:
    """Return the recipe with all defaults as YAML, with a comment that says which line or flag set each value."""
    text = []
    for line, path in _lines(_recipe_values(loaded.recipe), ()):
        comment = "" if path is None else f"# {loaded.origins.get(path, 'default')}"
        text.append(f"{line:<{_COMMENT_COLUMN}}  {comment}".rstrip() + "\n")
    return "".join(text)


def diff_recipes(a: Recipe, b: Recipe) -> list[tuple[str, Value, Value]]:
    """Return (dotted path, value in `a`, value in `b`) for each value that differs, defaults included.

    A value that is absent is None. So is an empty section, if the other recipe's values in it are named.
    """
    left, right = dict(_leaves(_recipe_values(a), "")), dict(_leaves(_recipe_values(b), ""))
    names = [*left, *(name for name in right if name not in left)]
    filled = {name[:i] for name in names for i, letter in enumerate(name) if letter == "."}
    differing = [(name, left.get(name), right.get(name)) for name in names if name not in filled]
    return [(name, before, after) for name, before, after in differing if before != after]


def _recipe_values(section: Section) -> dict[str, Value]:
    """Return a section as plain data with its defaults. Most fields whose value and default are None are left out."""
    values: dict[str, Value] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        is_absent = value is None and field.default is None and name not in _SHOWN_NULLS
        if name in _MERGED_FIELDS or is_absent:
            continue
        values[name] = _plain(value)
    return values


def _plain(value: object) -> Value:
    match value:
        case Section():
            return _recipe_values(value)
        case dict():
            return {str(key): _plain(inner) for key, inner in value.items()}
        case tuple() | list():
            return [_plain(inner) for inner in value]
        case str() | int() | float() | None:
            return value
        case _:
            raise AssertionError(f"a recipe contains no {type(value).__name__}")


def _lines(values: dict[str, Value], path: KeyPath) -> Iterator[tuple[str, KeyPath | None]]:
    """Yield each line, and the path of the value on it (None if the line starts a section)."""
    indent = "  " * len(path)
    for name, value in values.items():
        key = f"{indent}{flow_text(name)}:"
        if isinstance(value, dict) and value:
            yield key, None
            yield from _lines(value, (*path, name))
        else:
            yield f"{key} {flow_text(escape(value))}", (*path, name)


def _leaves(values: dict[str, Value], prefix: str) -> Iterator[tuple[str, Value]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
