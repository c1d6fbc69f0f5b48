"""`nanochat-run watch` and `compare --html`: a run that is going on, and runs that have ended."""

from __future__ import annotations

import base64
import re
from dataclasses import replace

import pytest

from nanochat.cli.run import main
from nanochat.errors import NanochatError
from nanochat.runner.run_snapshot import take_snapshot
from nanochat.runner.store.run_catalog import find_run, list_runs


@pytest.fixture(autouse=True)
def _base(bench, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(bench.base))


def test_a_snapshot_of_a_run_in_progress_names_its_stage_and_the_curve_so_far(bench):
    """Taken while the SFT stage reports progress: earlier stages have left curves."""
    bench.control(sft="wait")
    taken = []

    def look(title):
        if title.endswith("sft") and not taken:
            taken.append(take_snapshot(find_run("tiny", bench.base), bench.base))
            raise KeyboardInterrupt

    make = bench.make_display

    def make_display():
        display = make()
        display.on_progress = look
        return display

    bench.make_display = make_display
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    (snapshot,) = taken
    assert snapshot.is_active and snapshot.status == "running"
    assert (snapshot.title, snapshot.fraction, snapshot.text) == ("4-sft", 0.5, "step 2/4")
    assert dict(snapshot.stages)["5-chat_eval"] == "waiting"
    assert snapshot.curve_name == "base_eval train/loss" and snapshot.curve == ([1, 2, 3, 4], [8.0, 4.0, 8 / 3, 2.0])


def test_watch_shows_how_a_run_ended_and_its_last_curve(finished, capsys):
    assert main(["watch", "tiny"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tiny/") and "5-chat_eval finished" in lines[0]
    assert lines[1] == "chat_eval train/loss:" and lines[-1] == "finished"
    assert lines[2].strip().startswith("8 │") and lines[-3].strip().startswith("2 │") and lines[-2].endswith("4")


@pytest.mark.parametrize(("how", "code"), [("fail", 4), ("well", 5)])
def test_watch_ends_with_the_exit_code_of_the_run(bench, how, code):
    """Of a run that diverges, and of one that does not meet an expectation."""
    bench.recipe.write_text(bench.recipe.read_text() + "expect: {pretrain.loss: '< 0'}\n")
    bench.control(pretrain=how)
    with pytest.raises(NanochatError) as caught:
        bench.run()
    assert caught.value.exit_code == main(["watch", "tiny"]) == code
    assert main(["watch", "tiny", "--once"]) == 0


def test_watch_follows_a_run_until_it_ends(finished, monkeypatch, capsys):
    """The states come one after the other, as if another process worked on the run."""
    last = take_snapshot(find_run("tiny", finished.base), finished.base)
    running = replace(last, status="running", is_active=True, title="2-pretrain", fraction=0.25, text="step 1/4")
    states = iter([running, replace(running, fraction=0.5, text="step 2/4"), last])
    monkeypatch.setattr("nanochat.cli.verbs.watch_commands.take_snapshot", lambda *_: next(states))
    monkeypatch.setattr("nanochat.cli.verbs.watch_commands._LOOKS_PER_LINE", 1)
    monkeypatch.setattr("time.sleep", lambda _: None)
    assert main(["watch", "tiny"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["2-pretrain:  25% step 1/4", "2-pretrain:  50% step 2/4"] and lines[-1] == "finished"


def test_watch_shows_all_stages_on_a_narrow_terminal(finished, monkeypatch, capsys):
    """No line is longer than the terminal, and each status is beside its stage."""
    monkeypatch.setattr("nanochat.cli.verbs.watch_commands.TerminalConsole.is_terminal", True)
    monkeypatch.setenv("COLUMNS", "50")
    assert main(["watch", "tiny"]) == 0
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out).splitlines()
    text = "\n".join(lines)
    stages = ("1-tokenizer", "2-pretrain", "3-base_eval", "4-sft", "5-chat_eval")
    assert all(f"{stage} finished" in text for stage in stages)
    assert max(map(len, lines)) <= 50


def test_a_page_compares_results_recipes_and_curves(finished, capsys, tmp_path):
    finished.run("seed=7")
    first, second = (run.reference for run in list_runs(finished.base))
    page = tmp_path / "page.html"
    assert main(["compare", first, second, "--html", str(page)]) == 0
    assert capsys.readouterr().out == f"wrote {page}\n"
    text = page.read_text()
    assert first in text and second in text and "base_eval.bpb" in text
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert len(pictures) == 5 and all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    assert "<script" not in text and "http" not in text.replace("http-equiv", "")
