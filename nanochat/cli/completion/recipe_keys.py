"""The dotted keys of `--set`, and the values that a key can have, from the JSON Schema of recipes.

The names of sources, suites and the like, which are free, come from the recipe of the command line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from nanochat.recipe.shipped import find_recipe, schema_path

_MAX_DEPTH = 10
"""Recipes that extend one another; a cycle ends here."""
_NOT_SET = ("extends", "nanochat")


@dataclass(frozen=True)
class Candidate:
    """A word that may come next, and what it means. After a final `.`, `=` or `/` more of the word follows."""

    value: str
    meaning: str = ""

    def after(self, prefix: str) -> Candidate:
        """Return the candidate with text before it."""
        return Candidate(prefix + self.value, self.meaning)


def complete_setting(text: str, recipe: Path | None) -> Iterator[Candidate]:
    """Yield the completions of `text`, the beginning of a `KEY=VALUE`: the next part of the key, or the whole value."""
    key, has_value, value = text.partition("=")
    *sections, last = key.split(".")
    nodes = _expand([_schema()])
    content: Any = _read(recipe) if recipe is not None else {}
    for name in sections:
        nodes = _expand(_children(nodes, name))
        content = content.get(name) if isinstance(content, Mapping) else None
    if has_value:
        yield from (
            Candidate(f"{key}={choice}") for choice in _choices(_children(nodes, last)) if choice.startswith(value)
        )
        return
    names = {name: None for node in nodes for name in node.get("properties", {})}
    if isinstance(content, Mapping):
        names |= {str(name): None for name in content if _children(nodes, str(name))}
    for name in names:
        if name.startswith(last) and (sections or name not in _NOT_SET):
            child = _children(nodes, name)
            ending = "." if any(_is_map(node) for node in _expand(child)) else "="
            meaning = next((node["description"] for node in child if "description" in node), "")
            yield Candidate(".".join([*sections, name]) + ending, meaning)


@cache
def _schema() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(schema_path().read_text("utf-8"))
    return content


def _expand(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the schemas and, for references and alternatives, the schemas that they name."""
    expanded = []
    for node in nodes:
        parts = [part for kind in ("anyOf", "oneOf", "allOf") for part in node.get(kind, ()) if "required" not in part]
        if "$ref" in node:
            parts.append(_schema()["$defs"][node["$ref"].rpartition("/")[2]])
        expanded += [node] if not parts else [node, *_expand(parts)]
    return expanded


def _children(nodes: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Return the schemas of a field, or of an entry with a free name."""
    children = []
    for node in nodes:
        if name in node.get("properties", {}):
            children.append(node["properties"][name])
        else:
            children += node.get("patternProperties", {}).values()
            children += [node["additionalProperties"]] if isinstance(node.get("additionalProperties"), dict) else []
    return children


def _is_map(node: dict[str, Any]) -> bool:
    return any(isinstance(node.get(key), dict) for key in ("properties", "patternProperties", "additionalProperties"))


def _choices(nodes: list[dict[str, Any]]) -> list[str]:
    values: list[str] = []
    for node in _expand(nodes):
        values += [
            json.dumps(value).strip('"')
            for value in [*node.get("enum", ()), *([node["const"]] if "const" in node else ())]
        ]
        values += ["true", "false"] if node.get("type") == "boolean" else []
    return list(dict.fromkeys(values))


def _read(reference: Path, folder: Path = Path(), depth: int = 0) -> dict[str, Any]:
    """Return the content of a recipe merged with those that it extends, roughly: what cannot be read is left out."""
    import yaml  # here, because few completions need it

    path = find_recipe(reference, folder)
    try:
        own = yaml.safe_load(path.read_bytes())
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    if not isinstance(own, dict):
        return {}
    bases = own.get("extends") or []
    merged: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        if depth < _MAX_DEPTH:
            merged = _merge(merged, _read(Path(str(base)), path.parent, depth + 1))
    return _merge(merged, own)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            both[key] = _merge(below[key], above[key])
    return both
