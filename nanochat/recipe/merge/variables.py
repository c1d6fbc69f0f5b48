"""`${vars.NAME}`: a whole value keeps the variable's type, inside text it is text. No expressions, no nesting.

Where a path of local files begins with a variable, it is relative to whatever wrote the variable: its file, or for
`--set vars.NAME=...` the working directory.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from nanochat.recipe.merge.tree import KeyPath, map_scalars
from nanochat.recipe.schema.introspection import Slot, local_path
from nanochat.recipe.schema.suggestions import did_you_mean
from nanochat.recipe.source.diagnostics import Diagnostic, Origin
from nanochat.recipe.source.scalars import Scalar
from nanochat.recipe.source.yaml_reader import Node

_USE = re.compile(r"\$(\$\{)|\$\{([^{}]*)(\}?)")
_NAME = re.compile(r"vars\.[A-Za-z0-9_-]+")
_LITERAL = "write `$${` for the two characters themselves"
_MAX_EXPANDED_CHARS = 2**18


@dataclass(frozen=True)
class Substituted:
    """A tree with its variables put in, what was wrong with their uses, and the paths left as they were."""

    node: Node
    diagnostics: tuple[Diagnostic, ...]
    failed: frozenset[KeyPath]


def substitute(root: Node) -> Substituted:
    """Return the tree with its variables put in.

    `$${` writes a literal `${`. Variables hold plain values and may not use one another.
    """
    substitution = _Substitution(_variables(root))
    node = map_scalars(root, substitution.apply)
    return Substituted(node, tuple(substitution.diagnostics), frozenset(substitution.failed))


def escape(text: str) -> str:
    """Return `text` such that `substitute` gives it back."""
    return text.replace("${", "$${")


@dataclass(frozen=True)
class _Variable:
    value: Scalar
    folder: Path
    """Of the text that wrote it."""


def _variables(root: Node) -> dict[str, _Variable]:
    entry = root.value.get("vars") if isinstance(root.value, dict) else None
    if entry is None or not isinstance(entry.node.value, dict):
        return {}
    nodes = {name: each.node for name, each in entry.node.value.items()}
    return {
        name: _Variable(node.value, node.origin.text.folder)
        for name, node in nodes.items()
        if isinstance(node.value, str | int | float)
    }


class _Substitution:
    def __init__(self, variables: dict[str, _Variable]) -> None:
        self.diagnostics: list[Diagnostic] = []
        self.failed: set[KeyPath] = set()
        self._path: KeyPath = ()
        self._variables = variables
        self._expanded_chars = 0

    def apply(self, node: Node, slot: Slot | None, path: KeyPath) -> Node:
        text = node.value
        if not isinstance(text, str) or "${" not in text:
            return node
        self._path = path
        if path[:1] == ("vars",):
            self._note("bad-variable", "a variable cannot use another one", node, "${", "write the value out")
            return node
        whole = _USE.fullmatch(text)
        if whole is not None and whole[2] is not None:
            return replace(node, value=self._from_its_folder(self._value(whole, node), text, slot))
        value = _USE.sub(lambda use: self._text(use, node), text)
        return replace(node, value=self._from_its_folder(value, text, slot))

    def _from_its_folder(self, value: Scalar, written: str, slot: Slot | None) -> Scalar:
        """Return a relative path that begins with a variable as it stands from the variable's folder; others as is."""
        marker, use = local_path(slot), _USE.match(written)
        if marker is None or use is None or use[2] is None or not isinstance(value, str):
            return value
        variable = self._variables.get(use[2].strip().removeprefix("vars."))
        if variable is None or value.startswith(("/", "~")):
            return value
        if marker.only_explicit and not value.startswith(("./", "../")):
            return value
        return os.path.normpath(Path.cwd() / variable.folder / value)

    def _text(self, use: re.Match[str], node: Node) -> str:
        if use[1] is not None:
            return use[1]
        value = self._value(use, node)
        text = str(value).lower() if isinstance(value, bool) else str(value)
        self._expanded_chars += len(text)
        if self._expanded_chars > _MAX_EXPANDED_CHARS:
            if self._expanded_chars - len(text) <= _MAX_EXPANDED_CHARS:
                self._note("too-large", "variables grow the recipe too far", node, use[0])
            return ""
        return text

    def _value(self, use: re.Match[str], node: Node) -> Scalar:
        inner = use[2].strip()
        if not use[3]:
            self._note("bad-variable", "this `${` is not closed", node, use[0], _LITERAL)
        elif not _NAME.fullmatch(inner):
            help_ = f"there are no expressions; {_LITERAL}"
            self._note("bad-variable", f"`{use[0]}` is not of the form `${{vars.NAME}}`", node, use[0], help_)
        elif inner.removeprefix("vars.") not in self._variables:
            name = inner.removeprefix("vars.")
            help_ = did_you_mean(name, self._variables) or "this recipe sets no `vars`"
            self._note("unknown-variable", f"there is no variable `{name}`", node, use[0], help_)
        else:
            return self._variables[inner.removeprefix("vars.")].value
        return use[0]

    def _note(self, code: str, message: str, node: Node, part: str, help_: str = "") -> None:
        self.failed.add(self._path)
        self.diagnostics.append(Diagnostic(code, message, _place_of(part, node.origin), help_))


def _place_of(part: str, origin: Origin) -> Origin:
    """Return where `part` stands in the text at `origin`; `origin` itself where it is not on that line."""
    column = origin.text.line(origin.line).find(part, origin.column - 1) + 1
    return replace(origin, column=column, length=len(part)) if column else origin
