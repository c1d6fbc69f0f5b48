"""Turns a flag `--set KEY.PATH=VALUE` into a tree, which is merged like a recipe that extends the recipe file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nanochat.recipe.parsing.diagnostics import Origin, Text, refusal
from nanochat.recipe.parsing.nodes import Entry, Node
from nanochat.recipe.parsing.yaml_reader import read_yaml
from nanochat.recipe.schema.introspection import ROOT, Slot, child, is_free_map

_CODE = "bad-override"
_FLAG = "--set "
_EXAMPLE = "write `--set pretrain.horizon.steps=100`"


def read_override(override: str, number: int) -> Node:
    """Return the tree of a `KEY.PATH=VALUE`, where VALUE is a YAML scalar, or a list or map in brackets.

    `number` is the position of the flag among all flags, counted from 1. Whether the keys exist is checked later.
    """
    text = Text("--set", _FLAG + override, Path(), flag_number=number)
    if len(text.lines) > 1:
        raise refusal(_CODE, "the value of `--set` must be a single line", Origin(text, 1, len(_FLAG) + 1), _EXAMPLE)
    path, equals, _ = override.partition("=")
    if not equals:
        raise refusal(_CODE, "`=` is missing", Origin(text, 1, len(_FLAG) + 1, max(len(override), 1)), _EXAMPLE)
    keys: list[tuple[str, Origin]] = []
    column = len(_FLAG) + 1
    for name in split_path(path):
        origin = Origin(text, 1, column, max(len(name), 1))
        if not name.strip() or name != name.strip():
            raise refusal(_CODE, "a key is empty or has spaces around it", origin, _EXAMPLE)
        keys.append((name, origin))
        column += len(name) + 1
    if keys[0][0] == "extends":
        help_ = "write a recipe with this `extends`, and run it"
        raise refusal(_CODE, "`extends` can only be set in a recipe file", keys[0][1], help_)
    return tree_of(keys, _value(text, len(_FLAG) + len(path) + 1))


def split_path(path: str) -> list[str]:
    """Return the keys of a dotted path.

    Inside a map with free keys, such as `expect`, the rest of the path is a single key, because its keys contain dots.
    """
    keys: list[str] = []
    inner: Slot | None = ROOT
    dot, rest = ".", path
    while dot:
        name, dot, rest = (rest, "", "") if is_free_map(inner) else rest.partition(".")
        keys.append(name)
        inner = child(inner, name)
    return keys


def tree_of(keys: Sequence[tuple[str, Origin]], node: Node) -> Node:
    """Return a tree in which a path of keys, each with its place, leads to a value."""
    for name, origin in reversed(keys):
        value_origin = node.origin if not isinstance(node.value, dict) else origin
        node = Node({name: Entry(origin, Node(node.value, value_origin, node.folder))}, origin)
    return node


def _value(text: Text, skip: int) -> Node:
    if not text.content[skip:].strip():
        return Node(None, Origin(text, 1, skip + 1))
    node, diagnostics = read_yaml(text, skip=skip)
    if diagnostics:
        error = diagnostics[0]
        help_ = error.help or "put the value in quotes inside the quotes of the shell: `KEY='\"text\"'`"
        raise refusal(_CODE, error.message, error.origin, help_)
    assert node is not None, "without errors there is a tree"
    return node
