"""Descriptions for messages: the type that a field expects, the value that was found, and the path of a field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nanochat.recipe.merge.tree import KeyPath
from nanochat.recipe.parsing.nodes import Node
from nanochat.recipe.schema.introspection import Slot, is_free_map, json_type, map_value, section_of, tags

_MAX_VALUE_CHARS = 40
_TYPES = {"string": "text", "boolean": "true or false", "object": "a map"}


def dotted(path: KeyPath) -> str:
    """Return a path as users write it: `base_eval.samples[2]`."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def describe_value(node: Node) -> str:
    """Return a description of a value, such as `the text "four"` or `a list`."""
    match node.value:
        case dict():
            return "a map" if node.value else "an empty map"
        case tuple():
            return "a list" if node.value else "an empty list"
        case None:
            return "null"
        case bool():
            return f"`{str(node.value).lower()}`"
        case str():
            cut = node.value if len(node.value) <= _MAX_VALUE_CHARS else node.value[:_MAX_VALUE_CHARS] + "..."
            return f'the text "{cut}"'
        case _:
            return f"{node.value}"


def describe_type(slot: Slot, tag: object = None) -> str:
    """Return a description of the values that `slot` accepts, such as `a whole number from 1 to 200`."""
    section = section_of(slot, tag)
    if section is not None:
        return f"a map of fields ({', '.join(sorted(section.model_fields))})"
    if words := tags(slot):
        return f"a map with a `task` ({', '.join(words)})"
    if map_value(slot) is not None:
        return "a map" if is_free_map(slot) else "a map from names of your choice to sections"
    options = [option for option in _options(json_type(slot)) if option.get("type") != "null"]
    if any(option.get("type") == "integer" for option in options):
        options = [option for option in options if "pattern" not in option]  # `20M` is a way to write the number
    phrases = list(dict.fromkeys(_describe(option) for option in options))
    return " or ".join(part for part in (", ".join(phrases[:-1]), phrases[-1]) if part)


def choices(slot: Slot) -> list[str]:
    """Return the words that `slot` accepts, or an empty list if it accepts any text or none."""
    return [str(word) for option in _options(json_type(slot)) for word in _enum(option)]


def _options(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [inner for option in schema["anyOf"] for inner in _options(option)] if "anyOf" in schema else [schema]


def _enum(schema: Mapping[str, Any]) -> list[Any]:
    return [schema["const"]] if "const" in schema else list(schema.get("enum", []))


def _describe(schema: Mapping[str, Any]) -> str:
    if words := _enum(schema):
        return f"`{words[0]}`" if len(words) == 1 else "one of " + ", ".join(f"`{word}`" for word in words)
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _limits(schema)
    if kind == "array":
        return "a list of " + (_describe(items) if (items := schema.get("items")) else "values")
    if kind == "string" and "examples" in schema:
        return f"text like `{schema['examples'][0]}`"
    if kind == "string" and schema.get("minLength"):
        return "text that is not empty"
    return _TYPES.get(str(kind), "a value")


def _limits(schema: Mapping[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f" from {low} to {high}"
    limits = [(low, "of at least"), (above, "above"), (high, "of at most"), (below, "below")]
    given = [f"{word} {limit}" for limit, word in limits if limit is not None]
    return " " + " and ".join(given) if given else ""
