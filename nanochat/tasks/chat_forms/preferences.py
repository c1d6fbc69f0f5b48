"""Preference pairs (DPO): the `chosen` side becomes the conversation, and the `rejected` side is ignored.

`chosen` is a whole conversation, or the answer to the `prompt` beside it; both may be text or messages.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from nanochat.tasks.chat_forms.keys import words_of
from nanochat.tasks.chat_forms.messages import parse_messages, text_of
from nanochat.tasks.chat_forms.row_errors import BadConversation
from nanochat.tokenizer.chat_format import Message, Role

PROMPT_KEYS = ("prompt", "question", "instruction")
_SIDES = {"chosen", "rejected"}


def prepare_pair(row: dict[str, object], message_keys: Sequence[str], ignored: set[str]) -> None:
    """Decode messages that are stored as JSON text. Remove the keys that are not used, and add them to `ignored`.

    Not used are `rejected`, single values about either side such as `score_chosen`, and messages that repeat `chosen`.
    """
    for key in ("chosen", *message_keys, *PROMPT_KEYS):
        if key in row:
            row[key] = _decoded(row[key])
    for key, value in list(row.items()):
        is_about_a_side = _SIDES & set(words_of(key)) and not isinstance(value, list | dict)
        is_repeated = key in message_keys and value == row["chosen"]
        if key == "rejected" or (key != "chosen" and (is_about_a_side or is_repeated)):
            del row[key]
            ignored.add(key)


def take_chosen(row: dict[str, object], prompt_key: str | None, ignored: set[str]) -> list[Message]:
    """Return the messages of the chosen side, with the prompt in front, and remove both keys.

    Raises:
        BadConversation: there is no prompt for an answer, or the chosen conversation has a different beginning.
    """
    chosen = _messages(row.pop("chosen"), "chosen", "assistant", ignored)
    if prompt_key is None:
        if chosen[0].role == "assistant":
            raise BadConversation("`chosen` is an answer without its `prompt`")
        return chosen
    prompt = _messages(row.pop(prompt_key), prompt_key, "user", ignored, is_trained=False)
    if chosen[0].role == "assistant":
        return [*prompt, *chosen]
    turns = chosen[1:] if chosen[0].role == "system" != prompt[0].role else chosen
    start = [(message.role, message.content) for message in turns[: len(prompt)]]
    if start != [(message.role, message.content) for message in prompt]:
        raise BadConversation(f"`chosen` does not begin with the messages of `{prompt_key}`")
    ignored.add(prompt_key)
    return chosen


def _decoded(value: object) -> object:
    """Return the messages in JSON text. Return anything else as it is."""
    if not (isinstance(value, str) and value.lstrip().startswith("[")):
        return value
    try:
        decoded = json.loads(value)
    except (ValueError, RecursionError):
        return value
    is_messages = all(isinstance(message, dict) and {"role", "from"} & message.keys() for message in decoded)
    return decoded if is_messages and decoded else value


def _messages(value: object, key: str, role: Role, ignored: set[str], *, is_trained: bool = True) -> list[Message]:
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list):
        return parse_messages(value, ignored, is_trained=is_trained)
    return [Message(role, text_of(value, key))]
