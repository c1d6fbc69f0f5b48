"""A tiny model through every stage: once, again, with a change, and killed in the middle."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from nanochat.errors import InterruptedRun, StageError
from nanochat.runner.store.cache import newest_step
from nanochat.runner.store.runs import resolve_model
from nanochat.storage.layout import StageFolder

ALL = ["1-tokenizer", "2-pretrain", "3-base_eval", "4-sft", "5-chat_eval"]
LONGER = ("pretrain.horizon.steps=40", "run.checkpoint.every_steps=4", "run.monitor.validate_every_steps=20")


@pytest.fixture(scope="module")
def base(tmp_path_factory, runner) -> Path:
    """A base folder in which the recipe ran once."""
    folder = tmp_path_factory.mktemp("dry_run")
    _, shown = runner(folder)
    assert shown.ran() == ALL
    return folder


def test_the_second_time_nothing_runs(base, runner):
    """Every stage is served from cache, and the results are shown again."""
    run, shown = runner(base)
    assert shown.ran() == []
    assert shown.lines[0].startswith("nothing to do")
    assert {"base_eval", "chat_eval"} <= set(run.records(base))


def test_every_stage_left_what_the_next_one_and_the_reader_need(base, runner):
    """Results, a usable model, samples, records of the evaluation, a report."""
    run, _ = runner(base)
    records = run.records(base)
    assert 0 < records["base_eval"].metrics["bpb"] < 8
    assert 0 <= records["chat_eval"].metrics["spelling"] <= 1
    assert {path.name for path in resolve_model("dry_run", base).iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.model",
    }
    table = run.folder.stages / "5-chat_eval" / "out" / "tables" / "spelling.jsonl"
    assert len(table.read_text().splitlines()) == 4
    assert (run.folder.stages / "3-base_eval" / "out" / "samples.md").is_file()
    assert "| base_eval | bpb |" in run.folder.report.read_text()


def test_a_changed_sft_field_runs_only_sft_and_chat_eval(base, runner):
    """And nothing that does not depend on it."""
    _, shown = runner(base, "sft.horizon.steps=11")
    assert shown.ran() == ["4-sft", "5-chat_eval"]


def kill_child_at(base: Path, step: int, number: signal.Signals):
    """Return a heartbeat watcher that sends the pretrain child a signal once a checkpoint of `step` is there."""
    sent = []

    def on_beat(title: str) -> None:
        for path in (base / "stages" / "pretrain").glob("*/progress.json"):
            if not sent and (newest_step(StageFolder(path.parent)) or 0) >= step:
                sent.append(step)
                os.kill(json.loads(path.read_text())["pid"], number)

    return on_beat


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory, runner) -> Path:
    """A base folder with the tokenizer in it, to be copied."""
    folder = tmp_path_factory.mktemp("tokenized")
    runner(folder, last="tokenizer")
    return folder


def test_a_killed_pretraining_resumes_to_the_same_bits(tmp_path, tokenized, runner):
    """SIGKILL twice at different steps; weights, metrics and every output digest equal the undisturbed run's."""
    smooth_base, bumpy = (shutil.copytree(tokenized, tmp_path / name) for name in ("smooth", "bumpy"))
    smooth, _ = runner(smooth_base, *LONGER, last="pretrain")
    for step in (4, 20):
        with pytest.raises(StageError, match="SIGKILL"):
            runner(bumpy, *LONGER, on_beat=kill_child_at(bumpy, step, signal.SIGKILL), last="pretrain")
    run, shown = runner(bumpy, *LONGER, last="pretrain")
    assert any("2-pretrain: resumes" in line for line in shown.lines)
    records = [r.records(b)["pretrain"] for r, b in ((smooth, smooth_base), (run, bumpy))]
    assert records[0].output_files == records[1].output_files
    streams = [(r.folder.stages / "2-pretrain" / "metrics.jsonl").read_text() for r in (smooth, run)]
    assert streams[0] == streams[1]


def test_an_interrupted_child_saves_and_the_run_says_how_to_go_on(tmp_path, tokenized, runner):
    """SIGTERM to the child: exit 75 and one line."""
    base = shutil.copytree(tokenized, tmp_path / "base")
    with pytest.raises(InterruptedRun) as caught:
        runner(base, *LONGER, on_beat=kill_child_at(base, 4, signal.SIGTERM), last="pretrain")
    assert "continue with: nanochat-run recipes/dry_run.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_two_processes_train_are_stopped_and_go_on(tmp_path, runner):
    """Ctrl-C in the middle of pretraining; the same command, on one process now, ends it, for it is the same stage."""
    two = (*LONGER, "run.device=cpu", "run.distributed.processes=2")
    sent = []

    def on_beat(title: str) -> None:
        folders = list((tmp_path / "stages" / "pretrain").glob("*"))
        if title == "2-pretrain" and not sent and folders and (newest_step(StageFolder(folders[0])) or 0) >= 4:
            sent.append(os.kill(os.getpid(), signal.SIGINT))

    with pytest.raises(InterruptedRun, match=r"stopped (after|while)"):
        runner(tmp_path, *two, on_beat=on_beat, last="sft")
    _, shown = runner(tmp_path, *LONGER, last="pretrain")
    assert any("2-pretrain: resumes" in line for line in shown.lines)
    _, shown = runner(tmp_path, *two, last="sft")
    assert shown.ran() == ["3-base_eval", "4-sft"]
