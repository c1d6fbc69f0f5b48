"""Validates a merged recipe against the schema, and rewrites the errors of Pydantic in our own words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from nanochat.recipe.check.descriptions import choices, describe_type, describe_value, dotted
from nanochat.recipe.merge.tree import KeyPath, plain, tag_of
from nanochat.recipe.parsing.flow import flow_text
from nanochat.recipe.parsing.nodes import Node
from nanochat.recipe.schema.introspection import ROOT, TAG, Slot, allowed_fields, child, section_of, tags
from nanochat.recipe.schema.recipe import Recipe
from nanochat.recipe.schema.section import CONFLICT
from nanochat.recipe.schema.suggestions import did_you_mean, unknown_field_help

_LIMITS = {
    *("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number"),
    *("too_long", "too_short", "string_too_long", "string_too_short"),
}
_OTHER_SUITES: dict[KeyPath, KeyPath] = {
    ("base_eval", "suites"): ("chat_eval", "suites"),
    ("chat_eval", "suites"): ("base_eval", "suites"),
    ("run", "monitor", "evaluate", "suites"): ("run", "monitor", "evaluate", "chat_suites"),
    ("run", "monitor", "evaluate", "chat_suites"): ("run", "monitor", "evaluate", "suites"),
}
"""The section to suggest if a suite is of the other kind: for chat models instead of base models, or the reverse."""
_BOOLEAN_WORDS = ("yes", "no", "on", "off", "y", "n")
_NAME_RULE = (
    "a name consists of letters, digits, `-` and `_`, starts with a letter or digit, and has at most 64 characters"
)


@dataclass(frozen=True)
class FieldProblem:
    """A problem with the field at a path. Its place in a file is not known yet."""

    path: KeyPath
    code: str
    message: str
    help: str = ""
    at_key: bool = False
    """Whether the key is wrong rather than the value."""


def validate(node: Node) -> tuple[Recipe | None, list[FieldProblem]]:
    """Return the recipe, or None and everything that is wrong with it."""
    try:
        return Recipe.model_validate(plain(node)), []
    except ValidationError as raised:
        errors = raised.errors(include_url=False, include_input=False)
    grouped: dict[tuple[KeyPath, str], list[Mapping[str, Any]]] = {}  # a union reports one error per member
    for error in errors:
        kind = error["type"] if error["type"] in ("missing", "extra_forbidden") else "value"
        missing = str(error["loc"][-1]) if kind == "missing" else ""
        path = _find_place(node, error["loc"][:-1] if missing else error["loc"]).path
        if error["type"] != CONFLICT:  # Pydantic omits conflicts if there are other errors; `_conflicts` finds them all
            grouped.setdefault((path, kind + missing), []).append(error)
    problems = [_problem(_find_place(node, path), group) for (path, _), group in grouped.items()]
    return None, [*problems, *_conflicts(_Place((), node, ROOT))]


@dataclass(frozen=True)
class _Place:
    """A place in the tree, and what the schema accepts there."""

    path: KeyPath
    node: Node
    slot: Slot | None
    parent: _Place | None = None


def _find_place(root: Node, loc: tuple[str | int, ...]) -> _Place:
    """Return the place of a Pydantic error, whose `loc` also contains names of union members and `[key]`."""
    place = _Place((), root, ROOT)
    for key in loc:
        value = place.node.value
        if isinstance(value, dict) and isinstance(key, str) and key in value:
            inner = value[key].node
        elif isinstance(value, tuple) and isinstance(key, int) and key < len(value):
            inner = value[key]
        else:
            continue
        place = _Place((*place.path, key), inner, child(place.slot, key, tag_of(place.node)), place)
    return place


def _problem(place: _Place, group: list[Mapping[str, Any]]) -> FieldProblem:
    first = group[0]
    match first["type"]:
        case "missing":
            return _missing(place, str(first["loc"][-1]))
        case "union_tag_not_found":
            return _missing(place, TAG)
        case "extra_forbidden":
            return _unknown(place)
        case "union_tag_invalid":
            return _unknown_tag(place)
        case _ if "[key]" in first["loc"]:
            message = f"`{place.path[-1]}` cannot be a name" if place.path else "an empty key cannot be a name"
            return FieldProblem(place.path, "bad-name", message, _NAME_RULE, at_key=True)
        case _:
            return _wrong_value(place, group)


def _conflicts(place: _Place) -> Iterator[FieldProblem]:
    """Yield the conflicts between fields of the section at `place` and of all sections inside it."""
    if not isinstance(place.node.value, dict):
        return
    section, tag = section_of(place.slot, tag_of(place.node)), tag_of(place.node)
    given = [name for name, entry in place.node.value.items() if entry.node.value is not None]
    if section is not None and (conflict := section.conflict(given)) is not None:
        path = place.path if conflict.field is None else (*place.path, conflict.field)
        yield FieldProblem(path, conflict.code, f"`{dotted(place.path)}`: {conflict.message}", at_key=True)
    for name, entry in place.node.value.items():
        yield from _conflicts(_Place((*place.path, name), entry.node, child(place.slot, name, tag), place))


def _missing(place: _Place, name: str) -> FieldProblem:
    where = f"`{dotted(place.path)}`" if place.path else "the recipe"
    inner = child(place.slot, name, tag_of(place.node))
    if name == TAG:
        help_ = "it takes one of " + ", ".join(f"`{task}`" for task in tags(place.slot))
    else:
        help_ = f"it takes {describe_type(inner)}" if inner is not None else ""
    return FieldProblem(place.path, "missing-field", f"{where} needs the field `{name}`", help_, at_key=True)


def _unknown(place: _Place) -> FieldProblem:
    assert place.parent is not None, "a field is inside something"
    name, section = str(place.path[-1]), place.parent.path
    where = f"`{dotted(section)}`" if section else "a recipe"
    allowed = allowed_fields(place.parent.slot, tag_of(place.parent.node))
    if others := tags(place.parent.slot, name):
        help_ = f"`{name}` is a field of `task: {' | '.join(others)}`; allowed here: {', '.join(allowed)}"
    else:
        help_ = unknown_field_help(name, tuple(str(key) for key in section), allowed)
    return FieldProblem(place.path, "unknown-field", f"`{name}` is not a field of {where}", help_, at_key=True)


def _unknown_tag(place: _Place) -> FieldProblem:
    assert isinstance(place.node.value, dict), "a tag is read from a map"
    written = place.node.value[TAG].node
    name = dotted((*place.path, TAG))
    words = tags(place.slot)
    message = f"`{name}` must be one of {', '.join(f'`{word}`' for word in words)}, found {describe_value(written)}"
    help_ = _other_suites(place.path, str(written.value)) or did_you_mean(str(written.value), words)
    return FieldProblem((*place.path, TAG), "bad-choice", message, help_)


def _other_suites(path: KeyPath, task: str) -> str:
    """Return where a task is allowed if it was written among the suites of the other kind, else the empty text."""
    other = _OTHER_SUITES.get(path[:-1])
    if other is None:
        return ""
    slot: Slot | None = ROOT
    for name in (*other, path[-1]):
        slot = child(slot, name, None)
    return f"`{task}` is a task of `{dotted(other)}`" if task in tags(slot) else ""


def _wrong_value(place: _Place, group: list[Mapping[str, Any]]) -> FieldProblem:
    kinds = {str(error["type"]) for error in group}
    if place.slot is None:
        return FieldProblem(place.path, "wrong-type", f"`{dotted(place.path)}`: {group[0]['msg']}")
    words = choices(place.slot)
    help_ = ""
    if kinds & _LIMITS:
        code = "out-of-range"
    elif "string_pattern_mismatch" in kinds or "value_error" in kinds:
        code = "bad-format"
        reasons = [str(error["msg"]).removeprefix("Value error, ") for error in group if error["type"] == "value_error"]
        help_ = next(iter(reasons), "")
    elif "literal_error" in kinds and (isinstance(place.node.value, str) or kinds == {"literal_error"}):
        code, help_ = "bad-choice", did_you_mean(str(place.node.value), words) if len(words) > 1 else ""
    else:
        code, help_ = "wrong-type", _unabbreviated(place)
        if "bool_type" in kinds and str(place.node.value).lower() in _BOOLEAN_WORDS:
            help_ = f"`{place.node.value}` is text in YAML 1.2; write `true` or `false`"
    expected = describe_type(place.slot, tag_of(place.node))
    where = f"`{dotted(place.path)}`" if place.path else "a recipe"
    return FieldProblem(place.path, code, f"{where} must be {expected}, found {describe_value(place.node)}", help_)


def _unabbreviated(place: _Place) -> str:
    """Return how to write a source that is given by its path alone, or data that are given by their sources alone."""
    value = place.node.value
    words = [value] if isinstance(value, str) else [node.value for node in value] if isinstance(value, tuple) else []
    if not words or not all(isinstance(word, str) for word in words):
        return ""
    match place.path:
        case ("sources", name):
            field = "uri" if "://" in str(words[0]) else "path"
            return f"write `{flow_text({name: {field: words[0] if len(words) == 1 else words}})[1:-1]}`"
        case ("pretrain", "data"):
            return (
                f"write `{flow_text({'data': {word: {'weight': 1} for word in words}})[1:-1]}`, with names of `sources`"
            )
        case _:
            return ""
