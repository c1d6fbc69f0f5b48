"""`nanochat-chat` prints answers to the standard output, and everything else to the standard error."""

from __future__ import annotations

import io
import re
import sys
from dataclasses import asdict

import pytest

from nanochat.checkpoint.model_folder import load_model, load_tokenizer
from nanochat.cli import chat
from nanochat.cli.chat_loop import make_parser
from nanochat.inference.answer_text import AnswerDecoder
from nanochat.inference.chat_settings import ChatSettings
from nanochat.inference.engine import Engine
from nanochat.runner.store.record import Provenance
from nanochat.runner.store.run_state import RunState, RunTracking
from nanochat.runtime import base_dir
from nanochat.storage.layout import RunFolder


@pytest.fixture
def typed(monkeypatch):
    def type_lines(*lines: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))

    return type_lines


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    code = chat.main([str(argument) for argument in arguments])
    return (code, *capsys.readouterr())


def test_prompt_prints_only_the_answer_and_the_seed_decides_it(model_folder, capsys):
    def ask(*options: object) -> str:
        code, out, err = run(capsys, model_folder, "--prompt", "hi", "--max-tokens", "12", *options)
        assert (code, err) == (0, "(the answer was stopped at 12 tokens: the limit that is set)\n")
        assert out.endswith("\n")
        return out

    assert ask("--seed", "0") == ask("--seed", "0")
    assert ask("--seed", "0") != ask("--seed", "1")
    assert ask("--temperature", "0", "--seed", "0") == ask("--temperature", "0", "--seed", "1")
    assert ask("--temperature", "0") != ask("--temperature", "0", "--system", "Be someone else.")
    assert ask("--top-k", "1") == ask("--temperature", "0")


def test_max_tokens_bounds_the_answer(model_folder, capsys):
    long = run(capsys, model_folder, "--prompt", "hi", "--temperature", "0", "--max-tokens", "30")[1]
    short = run(capsys, model_folder, "--prompt", "hi", "--temperature", "0", "--max-tokens", "2")[1]
    assert 0 < len(short) < len(long)


def test_lines_of_the_standard_input_form_a_conversation(model_folder, capsys, typed):
    """The second answer depends on the first turn, and the third follows a /reset."""
    typed("hi", "hi", "/reset", "hi", "/quit", "never read")
    code, out, err = run(capsys, model_folder, "--temperature", "0", "--max-tokens", "5")
    assert code == 0
    stopped = "(the answer was stopped at 5 tokens: the limit that is set)\n"
    assert err == 2 * stopped + "started a new conversation\n" + stopped
    prompt = run(capsys, model_folder, "--temperature", "0", "--max-tokens", "5", "--prompt", "hi")[1]
    assert out.startswith(prompt)
    assert out.endswith(prompt)
    assert out != prompt * 3


def test_chat_says_what_the_model_did_not_read(model_folder, capsys, typed):
    """It says so once for each turn, and not on the standard output."""
    typed("hi", "y" * 500)
    code, out, err = run(capsys, model_folder, "--temperature", "0", "--max-tokens", "5")
    assert code == 0 and "did not read" not in out
    assert err.count("(the model did not read the first 2 messages of this chat: the context of ") == 1
    assert err.count(" tokens of your message: the context of ") == 1


def test_two_slashes_begin_a_message_with_one(model_folder, capsys, typed):
    options = ("--temperature", "0", "--max-tokens", "4")
    typed("  //quit it ")
    assert run(capsys, model_folder, *options)[:2] == run(capsys, model_folder, *options, "--prompt", "/quit it")[:2]


def test_commands_change_the_session(model_folder, capsys, typed):
    """A second system prompt replaces the first, and a misspelt command changes nothing but the exit code."""
    typed("/temp 0", "/tokens 4", "/system Be mean.", "/system Be kind.", "/sytem x", "/temp hot", "", "hi")
    code, out, err = run(capsys, model_folder)
    assert code == 2
    options = ("--temperature", "0", "--max-tokens", "4", "--system", "Be kind.")
    assert out == run(capsys, model_folder, *options, "--prompt", "hi")[1]
    assert "did you mean /system?" in err
    assert "`hot`" in err
    assert "2 lines of the input could not be used" in err


def test_a_line_that_is_not_valid_text_is_an_error_and_the_chat_continues(model_folder, capsys, typed):
    typed("\udce4", "hi")
    code, out, err = run(capsys, model_folder, "--temperature", "0", "--max-tokens", "4")
    assert code == 2
    assert "surrogate" in err and "1 line of the input could not be used" in err
    assert out.endswith(run(capsys, model_folder, "--temperature", "0", "--max-tokens", "4", "--prompt", "hi")[1])


def test_an_unknown_model_gets_a_suggestion(capsys):
    made = Provenance(git_commit=None, git_dirty=False, packages={}, python="", platform="", host="")
    process = {"host": "", "pid": 1, "process_started": 0, "provenance": made, "tracking": RunTracking(kind="none")}
    recipe = {"name": "tiny", "recipe": "tiny.yaml", "seed": 0, "plan_digest": ""}
    state = RunState(created=0, updated=0, status="finished", **recipe, **process)
    state.write(RunFolder(base_dir() / "runs" / "tiny" / "20260101-000000").state)
    code, out, err = run(capsys, "tinny", "--prompt", "hi")
    assert (code, out) == (2, "")
    assert "`tinny`" in err
    assert "did you mean `tiny`?" in err


def test_without_runs_the_error_explains_how_to_make_one(capsys, tmp_path):
    code, _, err = run(capsys, tmp_path, "--prompt", "hi")
    assert code == 2
    assert "nanochat-run" in err


def test_raw_continues_each_text_by_itself(model_folder, capsys, typed):
    """The text is the engine's after BOS and the prompt, and no line depends on another."""
    options = ("--raw", "--temperature", "0", "--max-tokens", "6")
    code, alone, _ = run(capsys, model_folder, *options, "--prompt", "the cat")
    assert code == 0
    typed("the cat", "the mat", "the cat")
    lines = run(capsys, model_folder, *options)[1]
    assert lines.startswith(alone) and lines.endswith(alone)
    engine = Engine(load_model(model_folder), load_tokenizer(model_folder))
    ids = [engine.tokenizer.bos_id, *engine.tokenizer.encode("the cat")]
    decoder = AnswerDecoder(engine.tokenizer)
    tokens = engine.complete([ids], max_tokens=6, use_calculator=False)[0]
    pieces = [piece for token in tokens for piece in decoder.feed(token)] + decoder.finish()
    expected = "".join(piece.text for piece in pieces)
    assert alone.rstrip("\n") == expected.rstrip("\n")
    assert alone != run(capsys, model_folder, *options[1:], "--prompt", "the cat")[1], "as a conversation it differs"
    assert run(capsys, model_folder, "--raw", "--system", "x")[0] == 2


def test_prompt_from_a_pipe(model_folder, capsys, typed):
    options = ("--temperature", "0", "--max-tokens", "5", "--prompt")
    typed("hi")
    assert run(capsys, model_folder, *options, "-") == run(capsys, model_folder, *options, "hi")
    typed("\udce4")
    assert run(capsys, model_folder, *options, "-")[0] == 3


def test_top_p_of_almost_nothing_is_greedy(model_folder, capsys):
    ask = lambda *options: run(capsys, model_folder, "--prompt", "hi", "--max-tokens", "8", *options)[1]  # noqa: E731
    assert ask("--top-p", "0.000001") == ask("--temperature", "0")


@pytest.mark.parametrize(
    "option",
    [
        ("--temperature", "-1"),
        ("--temperature", "x"),
        ("--top-p", "0"),
        ("--top-p", "1.1"),
        ("--top-k", "0"),
        ("--max-tokens", "x"),
        ("--seed", "-1"),
        ("--prompt", "\udcff"),
    ],
)
def test_wrong_options_exit_2(capsys, option):
    code, _, err = run(capsys, "model", *option)
    assert code == 2
    assert option[0] in err and "usage: nanochat-chat" in err
    assert "is not " in err and " value: " not in err, "the message names the rule, not our function"


def test_help_names_the_default_settings():
    shown = re.findall(r"\(default:\s+([\d.]+)\)", make_parser().format_help())
    assert shown == [str(value) for value in asdict(ChatSettings()).values()]


def test_ctrl_c_stops_the_answer_and_not_the_chat(model_folder, capsys, monkeypatch):
    """On a terminal Ctrl-C interrupts the first answer, the next line is answered, and Ctrl-D leaves."""
    from nanochat.inference.chat_session import ChatSession

    lines = iter(["one", "two"])

    def type_line(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    def reply(self, text: str):
        yield f"[{text}"
        if text == "one":
            raise KeyboardInterrupt
        yield "]"

    monkeypatch.setattr("builtins.input", type_line)
    monkeypatch.setattr(ChatSession, "reply", reply)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    code, out, _ = run(capsys, model_folder)
    assert code == 0
    assert "[one (stopped)\n" in out
    assert out.endswith("[two]\n")
