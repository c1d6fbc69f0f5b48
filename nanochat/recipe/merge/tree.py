"""Operations on the tree of a recipe: merge two trees, drop nulls, resolve paths, convert to plain data."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from nanochat.recipe.parsing.diagnostics import Origin
from nanochat.recipe.parsing.nodes import Entry, Node
from nanochat.recipe.parsing.scalars import Scalar
from nanochat.recipe.schema.introspection import ROOT, TAG, Slot, child, local_path, section_of
from nanochat.recipe.schema.section import Section

KeyPath: TypeAlias = tuple[str | int, ...]
Plain: TypeAlias = "Scalar | dict[str, Plain] | tuple[Plain, ...]"


def tag_of(node: Node) -> object:
    """Return the value of `task` in a map, which decides the kind of suite, or None if there is none.

    If the value is a map, as in `task: {python: FILE}`, return its key.
    """
    entry = node.value.get(TAG) if isinstance(node.value, dict) else None
    value = entry.node.value if entry is not None else None
    return next(iter(value), None) if isinstance(value, dict) else value


def merge(base: Node, over: Node, slot: Slot | None = ROOT) -> Node:
    """Return `base` with the values of `over`. Maps are merged deeply, and other values are replaced.

    A section may allow exactly one of several fields. If `over` sets one of them, the others are dropped from `base`,
    and so are the fields that depend on those.
    """
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    tag = tag_of(over) or tag_of(base)
    merged = dict(base.value)
    for name in _replaced_alternatives(over.value, section_of(slot, tag)):
        merged.pop(name, None)
    for name, entry in over.value.items():
        before = merged.get(name)
        node = entry.node if before is None else merge(before.node, entry.node, child(slot, name, tag))
        merged[name] = Entry(entry.key, node)
    return Node(merged, over.origin)


def drop_nulls(node: Node, slot: Slot | None = ROOT) -> Node:
    """Return the tree without the entries that are null, except where null is a value that differs from the default."""
    if not isinstance(node.value, dict):
        return node
    kept = {}
    for name, entry in node.value.items():
        inner = child(slot, name, tag_of(node))
        if entry.node.value is None and inner is not None and inner.drops_null:
            continue
        kept[name] = Entry(entry.key, drop_nulls(entry.node, inner))
    return replace(node, value=kept)


def map_scalars(
    node: Node, change: Callable[[Node, Slot | None, KeyPath], Node], slot: Slot | None = ROOT, path: KeyPath = ()
) -> Node:
    """Return the tree with each scalar node replaced by `change(node, slot, path)`."""
    if isinstance(node.value, dict):
        tag = tag_of(node)
        entries = {
            name: Entry(entry.key, map_scalars(entry.node, change, child(slot, name, tag), (*path, name)))
            for name, entry in node.value.items()
        }
        return replace(node, value=entries)
    if isinstance(node.value, tuple):
        items = enumerate(node.value)
        return replace(node, value=tuple(map_scalars(item, change, child(slot, i), (*path, i)) for i, item in items))
    return change(node, slot, path)


def resolve_paths(node: Node) -> Node:
    """Return the tree with absolute paths. Relative paths start at the folder of the text that contains them."""
    return map_scalars(node, _resolve_path)


def plain(node: Node) -> Plain:
    """Return the tree as plain data, with lists as tuples, which strict Pydantic models require."""
    if isinstance(node.value, dict):
        return {name: plain(entry.node) for name, entry in node.value.items()}
    if isinstance(node.value, tuple):
        return tuple(plain(item) for item in node.value)
    return node.value


def origins_of(node: Node, path: KeyPath = ()) -> tuple[dict[KeyPath, Origin], dict[KeyPath, Origin]]:
    """Return the place of each value and the place of each key by their path. The root has the empty path."""
    values: dict[KeyPath, Origin] = {path: node.origin}
    keys: dict[KeyPath, Origin] = {}
    children: list[tuple[str | int, Node]] = []
    if isinstance(node.value, dict):
        keys = {(*path, name): entry.key for name, entry in node.value.items()}
        children = [(name, entry.node) for name, entry in node.value.items()]
    elif isinstance(node.value, tuple):
        children = list(enumerate(node.value))
    for key, inner in children:
        inner_values, inner_keys = origins_of(inner, (*path, key))
        values |= inner_values
        keys |= inner_keys
    return values, keys


def _replaced_alternatives(over: dict[str, Entry], section: type[Section] | None) -> list[str]:
    if section is None:
        return []
    chosen = [name for name in section.exactly_one if name in over and over[name].node.value is not None]
    if not chosen:
        return []
    dependent = [name for name, needed in section.needs.items() if needed not in chosen]
    return [name for name in section.exactly_one if name not in chosen] + dependent


def _resolve_path(node: Node, slot: Slot | None, path: KeyPath) -> Node:
    marker = local_path(slot)
    if marker is None or not isinstance(node.value, str) or not node.value:
        return node
    if marker.only_explicit and not node.value.startswith(("./", "../", "/", "~/")):
        return node
    start, slash, rest = node.value.partition("/") if node.value.startswith("~") else ("", "", node.value)
    home = os.path.expanduser(start)  # noqa: PTH111 -- Path.expanduser raises without a home
    folder = str(Path.cwd() / (node.folder or node.origin.text.folder))
    if marker.is_pattern:
        home, folder = glob.escape(home), glob.escape(folder)
    return replace(node, value=os.path.normpath(Path(folder) / f"{home}{slash}{rest}"))


def map_of(value: Plain) -> dict[str, Plain]:
    """Return a value that is a map, and an empty map for all others."""
    return value if isinstance(value, dict) else {}


def value_at(data: Mapping[str, Plain], path: KeyPath) -> Plain:
    """Return the value at a path of plain data, or None if there is none."""
    value: Plain = dict(data)
    for key in path:
        value = map_of(value).get(str(key))
    return value
