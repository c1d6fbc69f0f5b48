"""Finds the path through a tree of messages, in which every message has one parent and may have several replies."""

from __future__ import annotations

from collections.abc import Mapping

from nanochat.tasks.chat_forms.messages import items_of
from nanochat.tasks.chat_forms.row_errors import BadConversation


def path_to(parents: Mapping[str, str | None], last: str) -> list[str]:
    """Return the messages from the root of a tree to the last one.

    `parents` names the parent of each message, None for a root.

    Raises:
        BadConversation: a message is missing, or comes before itself.
    """
    path: dict[str, None] = {}
    key: str | None = last
    while key is not None:
        if key in path:
            raise BadConversation(f"the tree is broken: message `{key}` comes before itself")
        if key not in parents:
            raise BadConversation(f"the tree is broken: message `{key}` is missing")
        path[key] = None
        key = parents[key]
    return list(reversed(path))


def last_leaf(nodes: Mapping[str, dict[str, object]]) -> str:
    """Return the message to which the last child of each message leads, from the root on.

    Raises:
        BadConversation: there is no root, or a message comes before itself.
    """
    key = next((key for key, node in nodes.items() if "parent" not in node), None)
    if key is None:
        raise BadConversation("the tree is broken: it has neither a `current_node` nor a message without a `parent`")
    for _ in range(len(nodes) + 1):
        children = items_of(nodes[key].get("children", []), f"`children` of `{key}`") if key in nodes else []
        if not children:
            return key
        key = str(children[-1])
    raise BadConversation(f"the tree is broken: message `{key}` comes before itself")
