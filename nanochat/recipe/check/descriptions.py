"""Words for messages: what a field takes, what was found instead, and paths as users write them."""

from __future__ import annotations

from typing import Any

from nanochat.recipe.merge.tree import KeyPath
from nanochat.recipe.schema.introspection import Slot, is_free_map, json_type, map_value, section_of, tags
from nanochat.recipe.source.yaml_reader import Node

_LONGEST_VALUE = 40
_TYPES = {"string": "text", "boolean": "true or false", "object": "a map"}


def dotted(path: KeyPath) -> str:
    """Return a path as users write it: `base_eval.samples[2]`."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def found(node: Node) -> str:
    """Return words for a value that does not fit: `the text "four"`, `a list`."""
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
            cut = node.value if len(node.value) <= _LONGEST_VALUE else node.value[:_LONGEST_VALUE] + "..."
            return f'the text "{cut}"'
        case _:
            return f"{node.value}"


def expected(slot: Slot, tag: object = None) -> str:
    """Return words for what may stand in `slot`: `a whole number from 1 to 200`."""
    section = section_of(slot, tag)
    if section is not None:
        return f"a map of fields ({', '.join(sorted(section.model_fields))})"
    if words := tags(slot):
        return f"a map with a `task` ({', '.join(words)})"
    if map_value(slot) is not None:
        return "a map" if is_free_map(slot) else "a map from names of your own to sections"
    options = [each for each in _options(json_type(slot)) if each.get("type") != "null"]
    if any(each.get("type") == "integer" for each in options):
        options = [each for each in options if "pattern" not in each]  # `20M` is a way to write the number
    phrases = list(dict.fromkeys(_phrase(each) for each in options))
    return " or ".join(part for part in (", ".join(phrases[:-1]), phrases[-1]) if part)


def choices(slot: Slot) -> list[str]:
    """Return the words that `slot` takes, where it takes only certain ones (or besides a number)."""
    return [str(each) for option in _options(json_type(slot)) for each in _enum(option)]


def example(slot: Slot) -> str | None:
    """Return an example of what `slot` takes, where its schema has one."""
    for option in _options(json_type(slot)):
        if option.get("examples"):
            return str(option["examples"][0])
    return None


def _options(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [inner for each in schema["anyOf"] for inner in _options(each)] if "anyOf" in schema else [schema]


def _enum(schema: dict[str, Any]) -> list[Any]:
    return [schema["const"]] if "const" in schema else list(schema.get("enum", []))


def _phrase(schema: dict[str, Any]) -> str:
    if words := _enum(schema):
        return f"`{words[0]}`" if len(words) == 1 else "one of " + ", ".join(f"`{each}`" for each in words)
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _limits(schema)
    if kind == "array":
        return "a list of " + _phrase(schema.get("items", {}))
    if kind == "string" and "examples" in schema:
        return f"text like `{schema['examples'][0]}`"
    if kind == "string" and schema.get("minLength"):
        return "text that is not empty"
    return _TYPES.get(str(kind), "a value")


def _limits(schema: dict[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f" from {low} to {high}"
    parts = [
        (low, "of at least"),
        (above, "above"),
        (high, "of at most"),
        (below, "below"),
    ]
    given = [f"{word} {limit}" for limit, word in parts if limit is not None]
    return " " + " and ".join(given) if given else ""
