"""Lines typed into the chat are parsed into messages and commands."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.cli.slash_commands import HELP, Action, ChangeSettings, Invalid, SetSystem, UserMessage, parse_line


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("hello /quit", UserMessage("hello /quit")),
        ("  spaced  ", UserMessage("spaced")),
        ("//quit is a command", UserMessage("/quit is a command")),
        ("", Action.NOTHING),
        (" \t", Action.NOTHING),
        ("/quit", Action.QUIT),
        ("/exit ", Action.QUIT),
        ("/QUIT", Action.QUIT),
        ("/reset", Action.RESET),
        ("/new", Action.RESET),
        ("/help", Action.HELP),
        ("/system Be brief. /quit", SetSystem("Be brief. /quit")),
        ("/system", SetSystem(None)),
        ("/temp 0", ChangeSettings({"temperature": 0.0}, "set the temperature to 0")),
        ("/temp 1.25", ChangeSettings({"temperature": 1.25}, "set the temperature to 1.25")),
        ("/tokens 12", ChangeSettings({"max_tokens": 12}, "set the maximum length of an answer to 12 tokens")),
    ],
)
def test_parse_line_distinguishes_messages_and_commands(line, meaning):
    assert parse_line(line) == meaning


@pytest.mark.parametrize(
    "line",
    [
        *("/temp", "/temp warm", "/temp -1", "/temp nan", "/temp inf"),
        *("/tokens", "/tokens 0", "/tokens -3", "/tokens 1.5", "/tokens ²", "/quit now", "/reset all", "/help me"),
    ],
)
def test_a_wrong_argument_is_named(line):
    meaning = parse_line(line)
    assert isinstance(meaning, Invalid)
    assert repr(line.partition(" ")[2]) in meaning.message


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        *(("/sytem x", ["/system"]), ("/qiut", ["/quit"]), ("/temperature 1", ["/temp"]), ("/token 5", ["/tokens"])),
        ("/zzzzzzzz", []),
    ],
)
def test_an_unknown_command_gets_a_suggestion_if_one_is_similar(typed, meant):
    meaning = parse_line(typed)
    assert isinstance(meaning, Invalid)
    assert re.findall(r"did you mean (\S+)\?", meaning.message) == meant


@given(st.text())
def test_any_text_is_parsed_and_plain_text_is_an_unchanged_message(text):
    meaning = parse_line(text)
    if text.strip() and not text.strip().startswith("/"):
        assert meaning == UserMessage(text.strip())


def test_help_lists_every_command():
    for name in ("/quit", "/exit", "/reset", "/new", "/system", "/temp", "/tokens", "/help"):
        assert name in HELP
