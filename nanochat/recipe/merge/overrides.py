"""`--set KEY.PATH=VALUE`: one flag to a tree of located nodes, written over the recipe like a file that extends it."""

from __future__ import annotations

from pathlib import Path

from nanochat.recipe.schema.introspection import ROOT, Slot, child, is_free_map
from nanochat.recipe.source.diagnostics import Diagnostic, Origin, Text
from nanochat.recipe.source.yaml_reader import Entry, Node, Refused, read_yaml

_FLAG = "--set "
_EXAMPLE = "write `--set pretrain.horizon.steps=100`"


def read_override(override: str, number: int) -> Node:
    """Return the tree that `KEY.PATH=VALUE` stands for; VALUE is a YAML scalar, or a list or map in brackets.

    `number` is the flag's place among all flags, from 1.
    Raises `Refused` for what cannot be read; whether the keys exist is for validation to say.
    """
    text = Text("--set", _FLAG + override, Path(), flag_number=number)
    if len(text.lines) > 1:
        raise _refuse("a `--set` is one line", Origin(text, 1, len(_FLAG) + 1), _EXAMPLE)
    path, equals, _ = override.partition("=")
    if not equals:
        raise _refuse("there is no `=`", Origin(text, 1, len(_FLAG) + 1, max(len(override), 1)), _EXAMPLE)
    keys = _keys(path, text)
    node = _value(text, len(_FLAG) + len(path) + 1)
    for name, origin in reversed(keys):
        value_origin = node.origin if not isinstance(node.value, dict) else origin
        node = Node({name: Entry(origin, Node(node.value, value_origin))}, origin)
    return node


def _keys(path: str, text: Text) -> list[tuple[str, Origin]]:
    """Return the keys of a dotted path with their places; the rest of a path into a map of plain values is one key."""
    keys: list[tuple[str, Origin]] = []
    inner: Slot | None = ROOT
    column, rest = len(_FLAG) + 1, path
    while True:
        name, dot, after = (rest, "", "") if is_free_map(inner) else rest.partition(".")
        origin = Origin(text, 1, column, max(len(name), 1))
        if not name.strip() or name != name.strip():
            raise _refuse("a key is empty or has blanks around it", origin, _EXAMPLE)
        keys.append((name, origin))
        if not dot:
            break
        inner = child(inner, name)
        column += len(name) + 1
        rest = after
    if keys[0][0] == "extends":
        raise _refuse("`extends` belongs in a file", keys[0][1], "name the recipe that extends it instead")
    return keys


def _value(text: Text, skip: int) -> Node:
    if not text.content[skip:].strip():
        return Node(None, Origin(text, 1, skip + 1))
    reading = read_yaml(text, skip=skip)
    if reading.diagnostics:
        found = reading.diagnostics[0]
        help_ = found.help or "put the value in quotes of its own: `KEY='\"text\"'`"
        raise Refused(Diagnostic("bad-override", found.message, found.origin, help_))
    assert reading.node is not None, "no findings, so there is a tree"
    return reading.node


def _refuse(message: str, origin: Origin, help_: str) -> Refused:
    return Refused(Diagnostic("bad-override", message, origin, help_))
