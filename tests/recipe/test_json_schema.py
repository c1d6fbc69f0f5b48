"""The JSON Schema for editors is up to date, has descriptions, and agrees with `load_recipe`."""

from __future__ import annotations

import functools
import json
import math
import re
from pathlib import Path

import pytest

from nanochat.recipe.json_schema import json_schema as make_json_schema
from nanochat.recipe.json_schema import schema_text
from nanochat.recipe.merge.tree import plain
from nanochat.recipe.parsing.diagnostics import Text
from nanochat.recipe.parsing.yaml_reader import read_yaml
from nanochat.recipe.schema.recipe import Recipe
from nanochat.recipe.schema_docs import reference_text

ROOT = Path(__file__).parents[2]
VALID = Path(__file__).parent / "valid"
json_schema = functools.cache(make_json_schema)


def test_files_in_schemas_are_up_to_date(check_golden):
    """`just schemas` updates them after a change of the schema."""
    check_golden(schema_text(), ROOT / "schemas" / "recipe.schema.json")
    check_golden(reference_text(), ROOT / "schemas" / "README.md")


def test_reference_has_every_section_and_every_field_of_a_recipe():
    text = reference_text()
    assert "\n## `pretrain.horizon`\n" in text
    assert "\n## `base_eval.suites.NAME` with `task: bpb`\n" in text
    assert all(f"\n| `{name}` |" in text.split("\n## ")[1] for name in Recipe.model_fields)


def test_every_field_has_a_description():
    schema = json_schema()
    for section in (schema, *schema["$defs"].values()):
        assert all(field.get("description") for field in section.get("properties", {}).values())


@pytest.mark.parametrize(
    "path", [*VALID.glob("*.yaml"), *(ROOT / "recipes").glob("**/*.yaml")], ids=lambda path: path.stem
)
def test_schema_accepts_every_valid_recipe(path):
    """The recipes use variables, nulls and `extends`."""
    assert _fits(_data(path.read_text(encoding="utf-8")), json_schema())


def test_schema_accepts_its_own_example():
    schema = json_schema()
    assert all(_fits(example, schema) for example in schema["examples"])


@pytest.mark.parametrize(
    "wrong",
    [
        "nanochat: 1",
        "name: x",
        "{nanochat: 2, name: x}",
        "{nanochat: 1, name: x, sed: 3}",
        "{nanochat: 1, name: a b}",
        "{nanochat: 1, name: x, model: {depth: four}}",
        "{nanochat: 1, name: x, model: {depth: 0}}",
        "{nanochat: 1, name: x, pretrain: {data: {a: {}}, schedule: {kind: cosin}}}",
        "{nanochat: 1, name: x, pretrain: {horizon: {tokens: 20m}}}",
        "{nanochat: 1, name: x, sources: {'a b': {builtin: spelling}}}",
        "{nanochat: 1, name: x, base_eval: {suites: {a: {task: bpb, num_fewshot: 1}}}}",
        "{nanochat: 1, name: x, chat_eval: {suites: {a: {task: bpb}}}}",
        "{nanochat: 1, name: x, run: {offline: 'no'}}",
    ],
)
def test_schema_rejects_mistakes(wrong):
    assert not _fits(_data(wrong), json_schema())


def _data(text):
    return json.loads(json.dumps(plain(read_yaml(Text("x", text, Path()))[0])))


TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}


def _fits(value, schema, root=None):
    """Validate the part of JSON Schema that recipes use, independently of Pydantic."""
    root = root or schema
    if "$ref" in schema and not _fits(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root):
        return False
    if "anyOf" in schema and not any(_fits(value, option, root) for option in schema["anyOf"]):
        return False
    if "oneOf" in schema and sum(_fits(value, option, root) for option in schema["oneOf"]) != 1:
        return False
    if ("const" in schema and value != schema["const"]) or ("enum" in schema and value not in schema["enum"]):
        return False
    kind = schema.get("type")
    if kind in ("integer", "number"):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or (kind == "integer" and value != int(value)):
            return False
        if value < schema.get("minimum", value) or value > schema.get("maximum", value):
            return False
        return value > schema.get("exclusiveMinimum", -math.inf) and value < schema.get("exclusiveMaximum", math.inf)
    if kind is not None and not isinstance(value, TYPES[kind]):
        return False
    if isinstance(value, str):
        return len(value) >= schema.get("minLength", 0) and re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, list):
        return all(_fits(item, schema.get("items", {}), root) for item in value)
    return _fits_map(value, schema, root) if isinstance(value, dict) else True


def _fits_map(value, schema, root):
    if any(name not in value for name in schema.get("required", [])):
        return False
    for name, inner in value.items():
        patterns = [each for pattern, each in schema.get("patternProperties", {}).items() if re.search(pattern, name)]
        if name in schema.get("properties", {}):
            rule = schema["properties"][name]
        elif patterns:
            rule = patterns[0]
        else:
            rule = schema.get("additionalProperties", {})
        if rule is False or (isinstance(rule, dict) and not _fits(inner, rule, root)):
            return False
    return True
