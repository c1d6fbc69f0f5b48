"""Chats of any other layout: the texts that a source's `map` makes from the keys of a row.

A text is either the name of a key (`answer`) or a template with keys in braces (`{question}\\n{context}`), in which
`{{` and `}}` stand for braces.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from nanochat.tasks.chat_forms.keys import present
from nanochat.tasks.chat_forms.row_errors import BadConversation
from nanochat.tokenizer.chat_format import Message, Role

ChatMap = tuple[tuple[Role, str], ...]
"""The texts of a `map` by the role of their message, in the order of the messages."""

_TOKEN = re.compile(r"\{\{|\}\}|\{[^{}]+\}|[^{}]+")


def mapped_keys(chat_map: ChatMap) -> list[str]:
    """Return the keys of a row that a `map` reads, in order, each once."""
    keys = [key for _, text in chat_map for key in keys_of(text)]
    return list(dict.fromkeys(keys))


def parse_mapped(row: Mapping[object, object], chat_map: ChatMap) -> list[Message]:
    """Return the messages that a `map` makes from a row. A `system` text without any value makes no message.

    Raises:
        BadConversation: a key is missing or holds no text, or all keys of the question are empty.
    """
    keys = mapped_keys(chat_map)
    missing = next((key for key in keys if key not in row), None)
    if missing is not None:
        raise BadConversation(f"no key `{missing}` (the source's `map`); the keys are: {', '.join(map(str, row))}")
    values = {key: scalar_text(key, value) for key, value in present({key: row[key] for key in keys}).items()}
    messages = [Message(role, fill(text, values)) for role, text in chat_map]
    for message, (_, text) in zip(messages, chat_map, strict=True):
        if message.role == "user" and not message.content:
            raise BadConversation(
                f"the question is empty: no value in {', '.join(f'`{key}`' for key in keys_of(text))}"
            )
    return [message for message in messages if message.content or message.role != "system"]


def fill(text: str, values: Mapping[str, str]) -> str:
    """Return a template with its keys replaced by values. A key without a value is empty.

    White space of the template at both ends and before an empty key is left out. If all keys are empty, so is the text.
    """
    if text in keys_of(text):
        return values.get(text, "")
    filled = gap = ""
    for token in _TOKEN.findall(text):
        if token in ("{{", "}}") or token[0] != "{":
            gap += token[0] if token in ("{{", "}}") else token
        elif value := values.get(token[1:-1], ""):
            filled += (gap if filled else gap.lstrip()) + value
            gap = ""
        else:
            gap = gap.rstrip()
    return filled + gap.rstrip() if filled else ""


def keys_of(text: str) -> list[str]:
    """Return the keys in a text of a `map`: the text itself if it has no braces."""
    if not {"{", "}"} & set(text):
        return [text]
    return [token[1:-1] for token in _TOKEN.findall(text) if token[0] == "{" and token != "{{"]


def scalar_text(key: str, value: object) -> str:
    """Return a value as text. Raises BadConversation for a list or an object."""
    match value:
        case str():
            return value
        case bool():
            return str(value).lower()
        case int() | float():
            return str(value)
    raise BadConversation(f"`{key}` must hold text or a number, found a list or an object")
