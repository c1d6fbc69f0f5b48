"""JSON Schema for recipes, so that editors can complete fields and check values while you type.

It accepts more than `load_recipe`, because an editor sees a single file: an extended recipe may supply the required
fields, any value may be a `${vars.NAME}`, and null removes what an extended recipe sets.
"""

from __future__ import annotations

import json
from typing import Any

from nanochat.recipe.schema.recipe import Recipe

_VARIABLE = {
    "type": "string",
    "pattern": r"^\$\{vars\.[A-Za-z0-9][A-Za-z0-9_-]*\}$",
    "description": "The value of a variable.",
}
_EXAMPLE = {
    "nanochat": 1,
    "name": "tiny",
    "sources": {"text": {"path": "data/*.txt"}},
    "tokenizer": {"source": "text", "vocab_size": 2048},
    "model": {"depth": 4, "sequence_len": 256},
    "pretrain": {"data": {"text": {}}, "horizon": {"tokens": "2M"}},
}


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a recipe file."""
    schema = Recipe.model_json_schema()
    sections = [schema, *schema["$defs"].values()]
    for section in sections:
        section.pop("required", None)
        for name, field in section.get("properties", {}).items():
            section["properties"][name] = _loosened(field)
    schema["properties"]["nanochat"] = {**schema["properties"]["nanochat"], "const": 1}
    schema["$defs"]["Variable"] = _VARIABLE
    heading = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "nanochat recipe",
        "description": schema.pop("description"),
        "examples": [_EXAMPLE],
        "anyOf": [{"required": ["extends"]}, {"required": ["nanochat", "name"]}],
    }
    return {**schema, **heading}


def schema_text() -> str:
    """Return the content of the schema file."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def _loosened(field: dict[str, Any]) -> dict[str, Any]:
    """Return the field's schema with null and variables allowed. Title, description and default stay outermost."""
    kept = ("title", "description", "default", "examples")
    annotations: dict[str, Any] = {key: field[key] for key in kept if key in field}
    types = {key: value for key, value in field.items() if key not in annotations}
    options = types.pop("anyOf", None) or types.pop("oneOf", None)
    options = [_loosened_map({**types, **option}) for option in options or [{}]]
    if {"type": "null"} not in options:
        options.append({"type": "null"})
    if not any("$ref" in option or option.get("type") in ("object", "array") for option in options):
        options.append({"$ref": "#/$defs/Variable"})
    return {**annotations, "anyOf": options}


def _loosened_map(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a map with null allowed as the value of an entry."""
    if isinstance(inner := schema.get("additionalProperties"), dict):
        return {**schema, "additionalProperties": _or_null(inner)}
    if "patternProperties" in schema:
        patterns = {pattern: _or_null(inner) for pattern, inner in schema["patternProperties"].items()}
        return {**schema, "patternProperties": patterns, "additionalProperties": False}
    return schema


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    options = schema.get("anyOf") or schema.get("oneOf") or [schema]
    return {"anyOf": [*options, {"type": "null"}]}
