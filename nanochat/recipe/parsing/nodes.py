"""The tree of a recipe before validation: values and keys with their places."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nanochat.recipe.parsing.diagnostics import Origin
from nanochat.recipe.parsing.scalars import Scalar


@dataclass(frozen=True)
class Node:
    """A value and its place. A block map or list has the place of its key."""

    value: Scalar | dict[str, Entry] | tuple[Node, ...]
    origin: Origin
    folder: Path | None = None
    """Folder at which a relative path in the value starts, if it is not the folder of the text."""


@dataclass(frozen=True)
class Entry:
    """The place of a key in a map, and its value."""

    key: Origin
    node: Node
