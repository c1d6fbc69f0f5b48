"""The JSON Schema of recipe files, for editors: descriptions, choices and ranges as one types.

It is looser than `load_recipe` where one file cannot know: required fields may come from a recipe that is
extended, any value may be a `${vars.NAME}`, and null drops what a base recipe set.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nanochat.recipe.schema.recipe import Recipe
from nanochat.storage.files import write_text

_VARIABLE = {"type": "string", "pattern": r"^\$\{vars\.[A-Za-z0-9][A-Za-z0-9_-]*\}$", "description": "A variable."}
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
    """Return what the schema file holds."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def write_schema(path: Path) -> None:
    """Write the schema file."""
    write_text(path, schema_text())


def schema_is_fresh(path: Path) -> bool:
    """Return whether the schema file is what `write_schema` would write."""
    return path.is_file() and path.read_text(encoding="utf-8") == schema_text()


def _loosened(field: dict[str, Any]) -> dict[str, Any]:
    """Return the field's schema with null and variables allowed; what describes the field stays outermost."""
    about: dict[str, Any] = {key: field[key] for key in ("title", "description", "default", "examples") if key in field}
    types = {key: value for key, value in field.items() if key not in about}
    options = types.pop("anyOf", None) or types.pop("oneOf", None)
    options = [types] if options is None else [{**types, **each} for each in options]
    options = [_loosened_map(each) for each in options]
    if {"type": "null"} not in options:
        options.append({"type": "null"})
    if not any("$ref" in each or each.get("type") in ("object", "array") for each in options):
        options.append({"$ref": "#/$defs/Variable"})
    return {**about, "anyOf": options}


def _loosened_map(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema of maps such that null drops an entry; of several kinds of suite any that fits will do."""
    if isinstance(inner := schema.get("additionalProperties"), dict):
        return {**schema, "additionalProperties": _or_null(inner)}
    if "patternProperties" in schema:
        patterns = {pattern: _or_null(inner) for pattern, inner in schema["patternProperties"].items()}
        return {**schema, "patternProperties": patterns, "additionalProperties": False}
    return schema


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    options = schema.get("anyOf") or schema.get("oneOf") or [schema]
    return {"anyOf": [*options, {"type": "null"}]}
