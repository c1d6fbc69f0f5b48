"""Prints a loaded recipe with its defaults, with the origin of each value, or as the difference from another recipe."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeAlias

import yaml

from nanochat.recipe.load import LoadedRecipe
from nanochat.recipe.merge.tree import KeyPath
from nanochat.recipe.merge.variables import escape
from nanochat.recipe.parsing.diagnostics import LINE_BREAK
from nanochat.recipe.parsing.scalars import NUMBER
from nanochat.recipe.schema.recipe import Recipe, Section

Value: TypeAlias = "str | int | float | bool | dict[str, Value] | list[Value] | None"

_MERGED_FIELDS = ("extends", "vars")
_COMMENT_COLUMN = 48


def resolved_yaml(loaded: LoadedRecipe) -> str:
    """Return the recipe with all defaults as YAML. Loading that YAML gives the same recipe."""
    return "".join(f"{line}\n" for line, _ in _lines(recipe_values(loaded.recipe), ()))


def yaml_with_origins(loaded: LoadedRecipe) -> str:
    """Return the recipe with all defaults as YAML, with a comment that says which line or flag set each value."""
    text = []
    for line, path in _lines(recipe_values(loaded.recipe), ()):
        comment = "" if path is None else f"# {loaded.origins.get(path, 'default')}"
        text.append(f"{line:<{_COMMENT_COLUMN}}  {comment}".rstrip() + "\n")
    return "".join(text)


def diff_recipes(a: Recipe, b: Recipe) -> list[tuple[str, Value, Value]]:
    """Return (dotted path, value in `a`, value in `b`) for each value that differs, defaults included.

    A value that is absent is None.
    """
    left, right = dict(_leaves(recipe_values(a), "")), dict(_leaves(recipe_values(b), ""))
    names = [*left, *(name for name in right if name not in left)]
    return [(name, left.get(name), right.get(name)) for name in names if left.get(name) != right.get(name)]


def recipe_values(section: Section) -> dict[str, Value]:
    """Return a section as plain data with its defaults. Fields whose value and default are None are left out."""
    values: dict[str, Value] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if name in _MERGED_FIELDS or (value is None and field.default is None):
            continue
        values[name] = _plain(value)
    return values


def _plain(value: object) -> Value:
    match value:
        case Section():
            return recipe_values(value)
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
        key = f"{indent}{_flow(name)}:"
        if isinstance(value, dict) and value:
            yield key, None
            yield from _lines(value, (*path, name))
        else:
            yield f"{key} {_flow(_escaped(value))}", (*path, name)


def _escaped(value: Value) -> Value:
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return escape(value) if isinstance(value, str) else value


def _leaves(values: dict[str, Value], prefix: str) -> Iterator[tuple[str, Value]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


class _Dumper(yaml.SafeDumper):
    """A dumper that quotes text which YAML 1.1 or 1.2 would read as another type."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Write text that has line breaks in double quotes, so that it stays on one line."""
    style = '"' if LINE_BREAK.search(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
# SafeDumper knows only the numbers of YAML 1.1, and would leave text that is a number in 1.2 without quotes.
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+.0123456789"))


def _flow(value: Value) -> str:
    """Return a value on one line of YAML."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, width=math.inf, allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")
