"""Reads a line typed into the chat: a message to the model, or a command such as `/reset`."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from nanochat.plurals import several


@dataclass(frozen=True)
class UserMessage:
    """A message to the model."""

    text: str


class Action(Enum):
    """A line without an argument."""

    NOTHING = "an empty line"
    HELP = "list the commands"
    RESET = "forget the conversation, and keep the system prompt and the settings"
    QUIT = "end the chat"


@dataclass(frozen=True)
class SetSystem:
    """Replace the system prompt; None removes it."""

    text: str | None


@dataclass(frozen=True)
class ChangeSettings:
    """Change fields of `ChatSettings`. `notice` says so to the user."""

    changes: Mapping[str, Any]
    notice: str


@dataclass(frozen=True)
class Invalid:
    """A command that does not exist or has a wrong argument."""

    message: str
    """For the user: what is wrong, and what to type instead."""


Line = UserMessage | Action | SetSystem | ChangeSettings | Invalid

HELP = """\
/system TEXT   replace the system prompt (without TEXT: remove it)
/temp X        set the sampling temperature; 0 is greedy
/tokens N      set the maximum length of an answer, in tokens
/reset, /new   forget the conversation
/help          show this list
/quit, /exit   leave (also Ctrl-D); Ctrl-C stops an answer
To send a message that begins with a slash, type two slashes."""

_NAMES = ("/quit", "/exit", "/reset", "/new", "/system", "/temp", "/tokens", "/help")


def parse_line(line: str) -> Line:
    """Return the meaning of a line. A wrong command is returned as `Invalid`."""
    line = line.strip()
    if not line:
        return Action.NOTHING
    if line.startswith("//"):
        return UserMessage(line[1:])
    if not line.startswith("/"):
        return UserMessage(line)
    name, _, argument = line.partition(" ")
    return _parse_command(name.lower(), argument.strip())


def _parse_command(name: str, argument: str) -> Line:
    match name:
        case "/system":
            return SetSystem(argument or None)
        case "/temp":
            return _parse_temperature(argument)
        case "/tokens":
            return _parse_max_tokens(argument)
        case "/quit" | "/exit" | "/reset" | "/new" | "/help" if argument:
            return Invalid(f"{name} takes no argument (found {argument!r})")
        case "/quit" | "/exit":
            return Action.QUIT
        case "/reset" | "/new":
            return Action.RESET
        case "/help":
            return Action.HELP
    return Invalid(_unknown(name))


def _unknown(name: str) -> str:
    prefixes = [known for known in _NAMES if name.startswith(known)]
    close = prefixes or difflib.get_close_matches(name, _NAMES, n=1)
    guess = f"did you mean {close[0]}? " if close else ""
    return f"unknown command {name}; {guess}(/help lists the commands)"


def _parse_temperature(argument: str) -> Line:
    try:
        value = float(argument)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        return Invalid(f"/temp needs a number of at least 0, such as `/temp 0.8` (found {argument!r})")
    return ChangeSettings({"temperature": value}, f"set the temperature to {value:g}")


def _parse_max_tokens(argument: str) -> Line:
    if not (argument.isascii() and argument.isdigit() and int(argument) > 0):
        return Invalid(f"/tokens needs a whole number of at least 1, such as `/tokens 256` (found {argument!r})")
    notice = f"set the maximum length of an answer to {several(int(argument), 'token')}"
    return ChangeSettings({"max_tokens": int(argument)}, notice)
