"""`nanochat-run data`: what it prints."""

from __future__ import annotations

import json
import os
import sys

import pytest

from nanochat.cli.run import main
from nanochat.runner.inspection.inspect_sources import SourceReport

RECIPE = """\
nanochat: 1
name: tiny
sources:
  chats: {path: chats.jsonl}
sft:
  data: {chat: {task: conversations, source: chats}}
  horizon: {steps: 4}
  tokens_per_step: 512
  sequence_len: 256
  init_from: model
tracking: {kind: none}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    (tmp_path / "chats.jsonl").write_text(json.dumps({"question": "2+2?\x1b[31m", "answer": "four"}) + "\n")
    return path


def test_data_marks_the_trained_text_and_escapes_control_characters(recipe, capsys):
    assert main(["data", str(recipe), "chats"]) == 0
    shown = capsys.readouterr().out
    assert "<|user_start|>2+2?\\x1b[31m<|user_end|><|assistant_start|>{+four<|assistant_end|>+}" in shown
    assert "\x1b" not in shown


def test_data_colours_the_trained_text_on_a_terminal(recipe, capsys, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert main(["data", str(recipe)]) == 0
    shown = capsys.readouterr().out
    assert "\x1b[1;32mfour<|assistant_end|>\x1b[0m" in shown and "{+" not in shown


def test_data_that_cannot_be_read_end_as_in_the_checks_before_a_run(recipe, capsys):
    (recipe.parent / "chats.jsonl").write_text('{"question": "no answer"}\n')
    assert main(["data", str(recipe)]) == 3
    shown = capsys.readouterr()
    assert "chats.jsonl:1" in shown.out
    assert shown.err.endswith("1 split cannot be read; the problems are listed above\n")


def test_data_show_a_note_and_a_problem_that_both_splits_have_once(recipe, capsys):
    """One file of 31 is in Latin-1; then all that remains of the others is one line."""
    text, folder = "tokenizer: {source: notes, vocab_size: 300}\ntracking: {kind: none}\n", recipe.parent / "notes"
    recipe.write_text(f"nanochat: 1\nname: tiny\nsources:\n  notes: {{path: {folder}}}\n{text}")
    folder.mkdir()
    (folder / "a.txt").write_bytes("café\n".encode("latin-1") * 50)
    for i in range(30):
        (folder / f"{i}.txt").write_text(f"note {i}\n")
    assert main(["data", str(recipe)]) == 0
    shown = capsys.readouterr().out
    assert "train: 29 documents" in shown and "validation: 1 document" in shown
    advice = "save the file as UTF-8, for example with `iconv -f WINDOWS-1252 -t UTF-8`; 50 lines are like that"
    assert shown.count(f"a file was left out: {folder}/a.txt:1: not UTF-8 at byte 4 of the line (0xE9): {advice}") == 1
    for i in range(30):
        (folder / f"{i}.txt").write_text("one line of one text")
    assert main(["data", str(recipe)]) == 3
    shown = capsys.readouterr()
    assert shown.out.count("no validation document") == 1 and "no validation document" not in shown.err


def test_data_names_the_known_sources(recipe, capsys):
    assert main(["data", str(recipe), "chat"]) == 2
    assert "no source `chat`; it has: chats" in capsys.readouterr().err


def test_data_stops_reading_when_nobody_reads_its_output(recipe, monkeypatch):
    """Otherwise `| head` would read all the data of a recipe."""

    def inspect_sources(prepared, name, *, limit):
        yield SourceReport("first", "source `first`")
        pytest.fail("the second source was read")

    monkeypatch.setattr("nanochat.runner.inspection.inspect_sources.inspect_sources", inspect_sources)
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(["data", str(recipe)]) == 0
