"""Calls of a Python tool, rendered through the python and output markers of the chat format.

A call fits if its function is called `python` (or `code_interpreter`, `ipython`) and its arguments are code, or an
object with the single key `code`. A message from `tool` or `function` fits if it follows Python code directly; it holds
the output of that code. Other calls and other messages of tools are refused, because the chat format has no place for
them.
"""

from __future__ import annotations

import dataclasses
import json

from nanochat.tasks.chat_forms.row_errors import BadConversation
from nanochat.tokenizer.chat_format import Message, Part

TOOL_ROLES = ("tool", "function", "ipython")
_PYTHON = ("python", "code_interpreter", "ipython")


def take_python_call(keys: dict[str, object]) -> Part | None:
    """Remove a call of Python from the keys of a message and return its code. Leave other calls, and return None."""
    calls = keys.get("tool_calls")
    key = "tool_calls" if calls is not None else "function_call"
    call = keys.get(key)
    if isinstance(calls, list):
        call = calls[0].get("function") if len(calls) == 1 and isinstance(calls[0], dict) else None
    code = _code(call) if isinstance(call, dict) and call.get("name") in _PYTHON else None
    if code is None:
        return None
    del keys[key]
    return Part("python", code)


def add_output(messages: list[Message], output: str, role: str, where: str) -> None:
    """Add the output of a tool to the last message, which must end with Python code.

    Raises:
        BadConversation: the last message has another end.
    """
    last = messages[-1].content if messages else ()
    if isinstance(last, str) or not last or last[-1].kind != "python":
        raise BadConversation(
            f"{where}role {role!r} is not supported here; it must follow the Python code whose output it is (a "
            "`python` part, or a call of the function `python`)"
        )
    messages[-1] = dataclasses.replace(messages[-1], content=(*last, Part("python_output", output)))


def take_tool_name(keys: dict[str, object]) -> None:
    """Remove the key `name` if it names a Python tool. The role already says so; any other name stays an unread key."""
    if keys.get("name") in _PYTHON:
        del keys["name"]


def continue_answer(before: Message, after: Message, where: str) -> Message:
    """Return an answer and what the assistant says after the output of its code as one message.

    Raises:
        BadConversation: the model is to be trained on one of them only.
    """
    if before.is_trained != after.is_trained:
        raise BadConversation(f"{where}it continues an answer, so both must be trained on or neither")
    return Message("assistant", (*_parts(before), *_parts(after)), before.is_trained)


def _parts(message: Message) -> tuple[Part, ...]:
    content = message.content
    return (Part("text", content),) if isinstance(content, str) else content


def _code(call: dict[str, object]) -> str | None:
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        try:
            decoded = json.loads(arguments)
        except (ValueError, RecursionError):
            return arguments
        arguments = decoded if isinstance(decoded, dict) else {"code": arguments}
    code = arguments.get("code") if isinstance(arguments, dict) and len(arguments) == 1 else None
    return code if isinstance(code, str) else None
