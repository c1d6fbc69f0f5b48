"""Replaces `${vars.NAME}` by the value of a variable. There are no expressions, and variables cannot use variables.

If `${vars.NAME}` is the whole value, the type of the variable is kept; inside longer text the value becomes text. A
relative path that starts with a variable is relative to the file that sets the variable, or to the working directory
for `--set vars.NAME=...`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, TypeVar, cast

from nanochat.recipe.merge.tree import KeyPath, map_scalars
from nanochat.recipe.parsing.diagnostics import Diagnostic, Origin
from nanochat.recipe.parsing.nodes import Node
from nanochat.recipe.parsing.scalars import Scalar
from nanochat.recipe.schema.introspection import Slot
from nanochat.recipe.schema.suggestions import did_you_mean

_USE = re.compile(r"\$(\$\{)|\$\{([^{}]*)(\}?)")
_NAME = re.compile(r"vars\.([A-Za-z0-9_-]+)")
_LITERAL = "write `$${` for a literal `${`"
_MAX_EXPANDED_CHARS = 2**18
_Value = TypeVar("_Value")


def substitute(root: Node) -> tuple[Node, list[tuple[KeyPath, Diagnostic]]]:
    """Return the tree with its variables replaced, and each error after the path of its value.

    `$${` becomes a literal `${`.
    """
    substitution = _Substitution(_variables(root))
    return map_scalars(root, substitution.apply), substitution.errors


def escape(value: _Value) -> _Value:
    """Return the value that `substitute` turns into `value`, which may be a map or a list of others."""
    escaped: Any = value
    match value:
        case str():
            escaped = value.replace("${", "$${")
        case dict():
            escaped = {name: escape(item) for name, item in value.items()}
        case tuple() | list():
            escaped = type(value)(map(escape, value))
    return cast(_Value, escaped)


def _variables(root: Node) -> dict[str, Node]:
    entry = root.value.get("vars") if isinstance(root.value, dict) else None
    if entry is None or not isinstance(entry.node.value, dict):
        return {}
    nodes = {name: inner.node for name, inner in entry.node.value.items()}
    return {name: node for name, node in nodes.items() if isinstance(node.value, str | int | float)}


class _Substitution:
    def __init__(self, variables: dict[str, Node]) -> None:
        self.errors: list[tuple[KeyPath, Diagnostic]] = []
        self._path: KeyPath = ()
        self._variables = variables
        self._expanded_chars = 0

    def apply(self, node: Node, slot: Slot | None, path: KeyPath) -> Node:
        text = node.value
        if not isinstance(text, str) or "${" not in text:
            return node
        self._path = path
        if path[:1] == ("vars",):
            self._report("bad-variable", "a variable cannot use another variable", node, "${", "write the value itself")
            return node
        whole = _USE.fullmatch(text)
        if whole is not None and whole[2] is not None:
            value = self._value(whole, node)
        else:
            value = _USE.sub(lambda use: self._text(use, node), text)
        first = _USE.match(text)
        variable = self._variables.get(_name_in(first)) if first is not None else None
        return replace(node, value=value, folder=variable.origin.text.folder if variable is not None else None)

    def _text(self, use: re.Match[str], node: Node) -> str:
        if use[1] is not None:
            return use[1]
        value = self._value(use, node)
        text = str(value).lower() if isinstance(value, bool) else str(value)
        self._expanded_chars += len(text)
        if self._expanded_chars > _MAX_EXPANDED_CHARS:
            if self._expanded_chars - len(text) <= _MAX_EXPANDED_CHARS:
                message = f"variables expand to more than {_MAX_EXPANDED_CHARS} characters"
                self._report("too-large", message, node, use[0])
            return ""
        return text

    def _value(self, use: re.Match[str], node: Node) -> Scalar:
        name = _name_in(use)
        if name in self._variables:
            value = self._variables[name].value
            assert not isinstance(value, dict | tuple), "`_variables` returns scalars"
            return value
        if not use[3]:
            self._report("bad-variable", "this `${` is not closed", node, use[0], _LITERAL)
        elif not name:
            help_ = f"expressions are not supported; {_LITERAL}"
            self._report("bad-variable", f"`{use[0]}` does not have the form `${{vars.NAME}}`", node, use[0], help_)
        else:
            help_ = did_you_mean(name, self._variables) or "this recipe has no `vars`"
            self._report("unknown-variable", f"there is no variable `{name}`", node, use[0], help_)
        return use[0]

    def _report(self, code: str, message: str, node: Node, part: str, help_: str = "") -> None:
        self.errors.append((self._path, Diagnostic(code, message, _place_of(part, node.origin), help_)))


def _name_in(use: re.Match[str]) -> str:
    """Return the name of the variable in a `${vars.NAME}`, or an empty string if the text has another form."""
    match = _NAME.fullmatch((use[2] or "").strip()) if use[3] else None
    return match[1] if match is not None else ""


def _place_of(part: str, origin: Origin) -> Origin:
    """Return the place of `part` in the value at `origin`, or `origin` itself if the line does not contain it."""
    column = origin.text.line(origin.line).find(part, origin.column - 1) + 1
    return replace(origin, column=column, length=len(part)) if column else origin
