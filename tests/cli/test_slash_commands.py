"""Commands typed into the chat change the session, end the chat, or are refused."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from nanochat.cli.slash_commands import HELP, run_command
from nanochat.errors import RecipeError
from nanochat.inference.chat_settings import ChatSettings


@pytest.fixture
def session():
    """A session with a system prompt and a turn."""
    session = SimpleNamespace(settings=ChatSettings(), system="Be kind.", turns=("a turn",), is_raw=False)
    session.reset = lambda: setattr(session, "turns", ())
    return session


@pytest.mark.parametrize(
    ("line", "changes", "notice"),
    [
        ("/reset", {"turns": ()}, "started a new conversation"),
        ("/NEW ", {"turns": ()}, "started a new conversation"),
        ("/help", {}, HELP),
        ("/system Be brief. /quit", {"system": "Be brief. /quit"}, "set the system prompt"),
        ("/system", {"system": None}, "removed the system prompt"),
        ("/temp 0", {"settings": ChatSettings(temperature=0.0)}, "set the temperature to 0"),
        ("/temp 1.25", {"settings": ChatSettings(temperature=1.25)}, "set the temperature to 1.25"),
        (
            "/tokens 12",
            {"settings": ChatSettings(max_tokens=12)},
            "set the maximum length of an answer to 12 tokens",
        ),
    ],
)
def test_a_command_changes_the_session_and_says_so(line, changes, notice, session):
    expected = vars(session) | changes
    assert run_command(session, line) == notice
    assert vars(session) == expected


@pytest.mark.parametrize("line", ["/quit", "/exit ", "/QUIT"])
def test_quit_ends_the_chat(line, session):
    assert run_command(session, line) is None


@pytest.mark.parametrize(
    "line",
    [
        *("/temp", "/temp warm", "/temp -1", "/temp nan", "/temp inf"),
        *("/tokens", "/tokens 0", "/tokens -3", "/tokens 1.5", "/tokens ²", "/quit now", "/reset all", "/help me"),
    ],
)
def test_a_wrong_argument_is_named(line, session):
    before = dict(vars(session))
    with pytest.raises(RecipeError, match=re.escape(f"`{line.partition(' ')[2]}`")):
        run_command(session, line)
    assert vars(session) == before


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        *(("/sytem x", ["/system"]), ("/qiut", ["/quit"]), ("/temperature 1", ["/temp"]), ("/token 5", ["/tokens"])),
        ("/zzzzzzzz", []),
    ],
)
def test_an_unknown_command_gets_a_suggestion_if_one_is_similar(typed, meant, session):
    with pytest.raises(RecipeError) as caught:
        run_command(session, typed)
    assert re.findall(r"did you mean (\S+)\?", str(caught.value)) == meant


def test_help_lists_every_command():
    for name in ("/quit", "/exit", "/reset", "/new", "/system", "/temp", "/tokens", "/help"):
        assert name in HELP
