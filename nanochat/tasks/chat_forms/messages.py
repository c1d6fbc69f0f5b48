"""Reads the messages of a conversation: `role` and `content`, or `from` and `value` as ShareGPT has them.

An assistant's content may be a list of parts, {"type": "text" | "python" | "python_output", "text": "..."}; the content
of other messages may be a list of text parts. Calls of Python and their outputs become such parts of an answer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from nanochat.tasks.chat_forms.keys import TRAINED_IF_FALSE, check_unread, present, take_flags
from nanochat.tasks.chat_forms.row_errors import BadConversation, UntrainedRow
from nanochat.tasks.chat_forms.tool_calls import (
    TOOL_ROLES,
    add_output,
    continue_answer,
    take_python_call,
    take_tool_name,
)
from nanochat.tokenizer.chat_format import Conversation, Message, Part, Role

_ROLES: dict[object, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
}
_SHOWN_CHARS = 80


def parse_messages(values: Sequence[object], ignored: set[str], *, is_trained: bool = True) -> list[Message]:
    """Return the messages; add the keys that were not read to `ignored`. With `is_trained` False, none is trained on.

    Raises:
        BadConversation: a message has another form; the error has its number.
    """
    messages: list[Message] = []
    is_after_output = False
    for number, value in enumerate(values, start=1):
        role = _given_role(value)
        if role in TOOL_ROLES:
            add_output(messages, _output(value, role, number, ignored), role, f"message {number}: ")
        else:
            message = _message(value, number, ignored, is_trained)
            if is_after_output and message.role == "assistant":
                message = continue_answer(messages.pop(), message, f"message {number}: ")
            messages.append(message)
        is_after_output = role in TOOL_ROLES
    return messages


def text_of(value: object, key: str, where: str = "") -> str:
    """Return the text that `key` holds.

    Raises:
        BadConversation: the value is something else.
    """
    if not isinstance(value, str):
        raise BadConversation(f"{where}`{key}` must be text, found {json_type(value)}")
    return value


def role_of(given: object, where: str = "") -> Role:
    """Return the role that a name such as `human` or `gpt` stands for. Raises BadConversation if there is none."""
    role = _ROLES.get(given.strip().lower()) if isinstance(given, str) else None
    if role is None:
        raise BadConversation(f"{where}role {given!r} is not supported; expected system, user or assistant")
    return role


def object_of(value: object, name: str) -> dict[str, object]:
    """Return the keys of an object that have a value; none for null, which tables hold for a missing object.

    Raises:
        BadConversation: the value is something else.
    """
    if value is not None and not isinstance(value, dict):
        raise BadConversation(f"{name} must be an object, found {json_type(value)}")
    return present(value or {})


def items_of(value: object, name: str) -> list[object]:
    """Return a list. Raises BadConversation if the value is something else."""
    if not isinstance(value, list):
        raise BadConversation(f"{name} must be a list, found {json_type(value)}")
    return value


def decode_list(value: object, key: str) -> object:
    """Return a value, decoded if it is a list or an object as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise BadConversation(f"`{key}` is text, and not JSON; store it as a list of messages") from None


def json_type(value: object) -> str:
    """Return the type of a decoded JSON value, in JSON's words."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list" if value else "an empty list"
        case dict():
            return "an object"
    return type(value).__name__


def _key_names(message: dict[object, object]) -> tuple[str, str]:
    """Return the keys that hold the role and the content. A message from a table may have all of them, some null."""
    is_sharegpt = message.get("role") is None and message.get("from") is not None
    return ("from", "value") if is_sharegpt or "role" not in message else ("role", "content")


def _given_role(value: object) -> str:
    role = value.get(_key_names(value)[0]) if isinstance(value, dict) else None
    return role.strip().lower() if isinstance(role, str) else ""


def _output(value: object, role: str, number: int, ignored: set[str]) -> str:
    """Return the text of a message of a tool."""
    where = f"message {number} ({role}): "
    assert isinstance(value, dict), "only a map has a role"
    keys = present(value)
    role_key, name = _key_names(value)
    keys.pop(role_key)
    content = _content("user", keys.pop(name, value.get(name)), name, where)
    take_tool_name(keys)
    check_unread(keys, ignored, where)
    return content if isinstance(content, str) else ""


def _message(value: object, number: int, ignored: set[str], is_trained: bool) -> Message:
    where = f"message {number}: "
    if not isinstance(value, dict):
        raise BadConversation(f"{where}must be an object with `role` and `content`, found {json_type(value)}")
    if len(value) == 2 and isinstance(value.get("content"), str) and value.get("role") in ("user", "assistant"):
        role = value["role"]  # most messages; this takes a third of the time
        return Message(role, value["content"], is_trained or role == "user")
    names = _key_names(value)
    if names[0] not in value or not {names[1], "tool_calls", "function_call"} & value.keys():
        raise BadConversation(f"{where}must have `role` and `content`; found {str(value)[:_SHOWN_CHARS]}")
    keys = present(value)
    given, content = keys.pop(names[0], None), keys.pop(names[1], value.get(names[1]))
    role = role_of(given, where)
    where = f"message {number} ({role}): "
    flag = take_flags(keys, where)
    if flag is not None and flag[1] and role != "assistant" and flag[0] not in (*TRAINED_IF_FALSE, "usable"):
        raise BadConversation(f"{where}`{flag[0]}` asks to train on it, but only answers are trained on; remove it")
    call = take_python_call(keys) if role == "assistant" else None
    check_unread(keys, ignored, where)
    is_masked = role == "assistant" and not (is_trained and (flag is None or flag[1]))
    text = _content(role, "" if call is not None and content is None else content, names[1], where)
    if call is not None:
        text = (*((Part("text", text),) if isinstance(text, str) and text else text), call)
    return Message(role, text, not is_masked)


def _content(role: Role, content: object, key: str, where: str) -> str | tuple[Part, ...]:
    if not isinstance(content, list):
        return text_of(content, key, where)
    parts = tuple(
        _part(part, number, role, f"{where}part {number} of `{key}` ") for number, part in enumerate(content, start=1)
    )
    if role == "assistant":
        return parts
    return "".join(part.text for part in parts)


def _part(value: object, number: int, role: Role, where: str) -> Part:
    keys = present(value) if isinstance(value, dict) else {}
    match keys:
        case {"type": "input_text" | "output_text", "text": str(text)} if len(keys) == 2:
            return Part("text", text)
        case {"type": "text" | "python" | "python_output" as kind, "text": str(text)} if len(keys) == 2:
            if role != "assistant" and kind != "text":
                raise BadConversation(f"{where}is {kind}, which only an assistant's message may have")
            return Part(kind, text)
        case _:
            raise BadConversation(
                f"{where}must have `type` (text, python, python_output) and `text`, and no other key; "
                f"found {str(value)[:_SHOWN_CHARS]}"
            )


def as_conversation(messages: list[Message]) -> Conversation:
    """Return the conversation of some messages. Roles must alternate, no answer is empty, and an answer is the last.

    Raises:
        BadConversation: the messages are not like that.
        UntrainedRow: no answer is to be trained on.
    """
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if len(turns) < 2:
        raise BadConversation("expected at least a question and an answer")
    for number, message in enumerate(turns):
        expected = "assistant" if number % 2 else "user"
        place = number + 1 + len(messages) - len(turns)
        if message.role != expected:
            raise BadConversation(f"message {place} is from `{message.role}`; expected `{expected}` there")
        if message.role == "assistant" and not message.text():
            raise BadConversation(f"message {place}: an empty answer trains nothing")
    if turns[-1].role != "assistant":
        raise BadConversation("the last message must be the assistant's")
    if not any(message.is_trained for message in turns[1::2]):
        raise UntrainedRow("every answer of the row is marked as not to be trained on")
    return Conversation(tuple(messages))
