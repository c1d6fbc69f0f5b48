"""The commands that a user can type into a chat, such as `/reset`."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from nanochat.cli.arguments.parser import positive, temperature
from nanochat.errors import RecipeError
from nanochat.plurals import several

if TYPE_CHECKING:  # MLX must not be imported before `runtime.prepare`
    from nanochat.inference.chat_session import ChatSession

_Number = TypeVar("_Number", int, float)

HELP = """\
/system TEXT   replace the system prompt (without TEXT: remove it)
/temp X        set the sampling temperature; 0 is greedy
/tokens N      set the maximum length of an answer, in tokens
/reset, /new   forget the conversation
/help          show this list
/quit, /exit   leave (also Ctrl-D); Ctrl-C stops an answer
To send a message that begins with a slash, type two slashes."""

_NAMES = ("/quit", "/exit", "/reset", "/new", "/system", "/temp", "/tokens", "/help")


def run_command(session: ChatSession, line: str) -> str | None:
    """Carry out a command and return the message to print, or None if the chat is to end.

    Raises:
        RecipeError: there is no such command, or its argument is wrong.
    """
    word, _, rest = line.partition(" ")
    name, argument = word.lower(), rest.strip()
    match name:
        case "/system" if session.is_raw:
            return "a text is continued as it is, so there is no system prompt (--raw)"
        case "/system":
            session.system = argument or None
            return "set the system prompt" if argument else "removed the system prompt"
        case "/temp":
            session.settings = replace(session.settings, temperature=_read(temperature, name, argument, "0.8"))
            return f"set the temperature to {session.settings.temperature:g}"
        case "/tokens":
            session.settings = replace(session.settings, max_tokens=_read(positive, name, argument, "256"))
            return f"set the maximum length of an answer to {several(session.settings.max_tokens, 'token')}"
        case "/quit" | "/exit" | "/reset" | "/new" | "/help" if argument:
            raise RecipeError(f"{name} takes no argument (found `{argument}`)")
        case "/quit" | "/exit":
            return None
        case "/reset" | "/new":
            session.reset()
            return "started a new conversation"
        case "/help":
            return HELP
    raise RecipeError(_unknown(name))


def _read(parse: Callable[[str], _Number], name: str, argument: str, example: str) -> _Number:
    try:
        return parse(argument)
    except argparse.ArgumentTypeError as error:
        raise RecipeError(f"{name}: {error}; write, for example, `{name} {example}`") from None


def _unknown(name: str) -> str:
    prefixes = [known for known in _NAMES if name.startswith(known)]
    close = prefixes or difflib.get_close_matches(name, _NAMES, n=1)
    guess = f"did you mean {close[0]}? " if close else ""
    return f"unknown command {name}; {guess}(/help lists the commands)"
