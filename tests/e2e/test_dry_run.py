"""End-to-end runs of dry_run.yaml: first run, cached run, changed recipe, killed and interrupted stages."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from nanochat.cli.chat import main as main_of_chat
from nanochat.cli.run import main
from nanochat.errors import InterruptedRun, StageError
from nanochat.runner.store.run_catalog import resolve_model
from nanochat.runner.store.stage_cache import newest_step
from nanochat.storage.layout import StageFolder

ROOT = Path(__file__).resolve().parents[2]
ALL_STAGES = ["1-tokenizer", "2-pretrain", "3-base_eval", "4-sft", "5-chat_eval"]
LONGER = ("pretrain.horizon.steps=40", "run.checkpoint.every_steps=4", "run.monitor.validate_every_steps=20")


def computed_stages(display) -> list[str]:
    """Return the titles of the stages that were computed, not skipped."""
    return re.findall(r"^(\d-\w+): done", display.text, re.MULTILINE)


@pytest.fixture(scope="module")
def base(tmp_path_factory, run_dry) -> Path:
    """A base folder in which the recipe has run once."""
    folder = tmp_path_factory.mktemp("dry_run")
    _, display = run_dry(folder)
    assert computed_stages(display) == ALL_STAGES
    return folder


def test_second_run_skips_every_stage_and_shows_the_results(base, run_dry):
    """The first run has left metrics, the model, samples, tables and a report."""
    run, display = run_dry(base)
    assert computed_stages(display) == []
    assert display.lines[0].startswith("nothing to do")
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


@pytest.fixture
def quickstart(base, tmp_path, monkeypatch):
    """A working folder in which `quickstart` is a file, which wins over the name: the recipe that has run already."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(shutil.copytree(base, tmp_path / "copy", symlinks=True)))
    text = (ROOT / "recipes" / "dry_run.yaml").read_text()
    Path("quickstart").write_text(text.replace("name: dry_run", "name: quickstart") + "tracking: {kind: none}\n")


def test_the_python_of_the_readme_runs(quickstart, capsys):
    (block,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert "quickstart: 5 stages" in capsys.readouterr().out
    assert names["steps"] == list(range(1, 11)) and 0 < names["losses"][-1] < 8
    assert names["logits"].shape[1] == 512


def test_a_notebook_shows_plans_and_reports_and_continues_with_results(quickstart):
    """As in a notebook: cells share names, and the value of a cell is shown as HTML if it can be."""
    cells = [
        "import nanochat",
        "plan = nanochat.plan('quickstart')\nplan",
        "lines, seen = [], []\nrun = nanochat.run('quickstart', {'chat_eval.suites.spelling.max_problems': 3},"
        " on_line=lines.append, on_progress=seen.append)\nrun",
        "nanochat.find_run(run.reference)",
        "run.metrics",
    ]
    names: dict[str, Any] = {}
    shown = [show_cell(cell, names) for cell in cells]
    assert shown[1].startswith("<pre>quickstart: 5 stages")
    assert all(page.startswith("<iframe srcdoc=") and "&lt;h1" in page for page in shown[2:4])
    assert re.findall(r"^(\d-\w+): done", "\n".join(names["lines"]), re.MULTILINE) == ["5-chat_eval"]
    assert {progress.stage for progress in names["seen"]} == {"5-chat_eval"}
    assert 0 <= names["seen"][0].fraction <= names["seen"][-1].fraction <= 1
    run = names["run"]
    assert run.status == "finished" and run.metrics["chat_eval.spelling.n"] == 3
    result = json.loads((run.folder / "stages" / "3-base_eval" / "out" / "result.json").read_text())
    assert run.metrics["base_eval.bpb"] == result["metrics"]["bpb"]
    assert "pretrain.train/loss" in run.series and run.folder.is_dir()


def show_cell(source: str, names: dict[str, Any]) -> str:
    """Run a cell and return what a notebook shows of its last line."""
    *before, last = ast.parse(source).body
    exec(compile(ast.Module(before, []), "cell", "exec"), names)
    if not isinstance(last, ast.Expr):
        exec(compile(ast.Module([last], []), "cell", "exec"), names)
        return ""
    value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    return str(value._repr_html_() if hasattr(value, "_repr_html_") else repr(value))


def test_copied_base_folder_works_under_another_path_and_host_name(base, run_dry, tmp_path, monkeypatch, capsys):
    """`cp -r` gives the files new times. The original is not there, so nothing can depend on it."""
    run, _ = run_dry(base)
    aside, copy = base.rename(base.with_name("aside")), tmp_path / "copy"
    try:
        subprocess.run(["cp", "-r", aside, copy], check=True)
        monkeypatch.setenv("NANOCHAT_BASE_DIR", str(copy))
        monkeypatch.setattr("platform.node", lambda: "another-host")
        for arguments, shown in (
            (["ls"], f"{run.reference}  finished"),
            (["report", "dry_run"], "| base_eval | bpb |"),
            (["compare", "dry_run", run.reference], "The recipes do not differ in anything that affects results."),
        ):
            assert main(arguments) == 0
            assert shown in capsys.readouterr().out
        assert main_of_chat(["dry_run", "--prompt", "hi", "--max-tokens", "2", "--device", "cpu"]) == 0
        again, display = run_dry(copy)
        assert display.lines[0].startswith("nothing to do") and computed_stages(display) == []
        assert (again.folder.path, again.state.host) == (copy / "runs" / run.reference, "another-host")
        assert again.state.provenance == run.state.provenance, "the report says where it was computed"
    finally:
        aside.rename(base)


@contextmanager
def signal_child_at(base: Path, step: int, number: signal.Signals) -> Iterator[None]:
    """Signal the pretrain process of a run in this block as soon as it has saved a checkpoint of `step`.

    A thread looks every few milliseconds. The progress of the run is shown too rarely: the stage takes a few of them.
    """
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.002):
            for path in (base / "stages" / "pretrain").glob("*/progress.json"):
                if (newest_step(StageFolder(path.parent)) or 0) >= step:
                    with suppress(ProcessLookupError, FileNotFoundError):  # it is that of an earlier attempt
                        os.kill(json.loads(path.read_text())["pid"], number)
                        return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory, base) -> Path:
    """A base folder that holds the tokenizer stage, for tests to copy."""
    folder = tmp_path_factory.mktemp("tokenized")
    shutil.copytree(base / "stages" / "tokenizer", folder / "stages" / "tokenizer")
    return folder


@pytest.mark.slow
def test_pretraining_killed_twice_ends_with_the_same_bits(tmp_path, tokenized, run_dry):
    """Digests of all outputs and the metrics equal those of a run that was never killed."""
    whole_base, killed_base = (shutil.copytree(tokenized, tmp_path / name) for name in ("whole", "killed"))
    whole, _ = run_dry(whole_base, *LONGER, last="pretrain")
    for step in (4, 20):
        with pytest.raises(StageError, match="SIGKILL"), signal_child_at(killed_base, step, signal.SIGKILL):
            run_dry(killed_base, *LONGER, last="pretrain")
    killed, display = run_dry(killed_base, *LONGER, last="pretrain")
    assert any("2-pretrain: resumes" in line for line in display.lines)
    records = [r.records(b)["pretrain"] for r, b in ((whole, whole_base), (killed, killed_base))]
    assert records[0].output_files == records[1].output_files
    metrics = [(r.folder.stages / "2-pretrain" / "metrics.jsonl").read_text() for r in (whole, killed)]
    assert metrics[0] == metrics[1]


def test_interrupted_stage_saves_and_the_run_prints_how_to_continue(tmp_path, tokenized, run_dry):
    """The message of the error is a single line."""
    base = shutil.copytree(tokenized, tmp_path / "base")
    with pytest.raises(InterruptedRun) as caught, signal_child_at(base, 4, signal.SIGTERM):
        run_dry(base, *LONGER, last="pretrain")
    assert "continue with: nanochat-run recipes/dry_run.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_interrupted_training_on_two_processes_resumes_on_one(tmp_path, run_dry):
    """One process finishes what Ctrl-C stopped on two, because the number of processes is not in the fingerprint."""
    two = (*LONGER, "run.device=cpu", "run.distributed.processes=2")
    sent = []

    def on_progress(title: str) -> None:
        folders = list((tmp_path / "stages" / "pretrain").glob("*"))
        if title == "2-pretrain" and not sent and folders and (newest_step(StageFolder(folders[0])) or 0) >= 4:
            sent.append(os.kill(os.getpid(), signal.SIGINT))

    with pytest.raises(InterruptedRun, match=r"stopped (after|while)"):
        run_dry(tmp_path, *two, on_progress=on_progress, last="sft")
    _, display = run_dry(tmp_path, *LONGER, last="pretrain")
    assert any("2-pretrain: resumes" in line for line in display.lines)
    _, display = run_dry(tmp_path, *two, last="sft")
    assert computed_stages(display) == ["3-base_eval", "4-sft"]


@pytest.mark.slow
def test_training_for_minutes_on_two_processes_ends_for_both_and_resumes(tmp_path, run_dry):
    """Processes that did not end with the same step would wait for each other for ever."""
    minutes = ("pretrain.horizon={minutes: 0.05}", "run.checkpoint.every_steps=4", "run.device=cpu")
    two = (*minutes, "run.distributed.processes=2")
    stopped = []

    def on_progress(title: str) -> None:
        folders = list((tmp_path / "stages" / "pretrain").glob("*"))
        if title == "2-pretrain" and not stopped and folders and (newest_step(StageFolder(folders[0])) or 0) >= 4:
            stopped.append(os.kill(os.getpid(), signal.SIGINT))

    with pytest.raises(InterruptedRun, match=r"stopped (after|while)"):
        run_dry(tmp_path, *two, on_progress=on_progress, last="pretrain")
    _, display = run_dry(tmp_path, *two, last="pretrain")
    assert any("2-pretrain: resumes" in line for line in display.lines)
    (folder,) = (tmp_path / "stages" / "pretrain").glob("*")
    assert json.loads((folder / "out" / "timings.json").read_text())["training_seconds"] >= 3


@pytest.mark.slow
def test_report_says_which_model_of_an_overfitting_sft_was_passed_on_and_what_its_suites_cost(base, tmp_path, run_dry):
    """The held-out answers contradict those that are trained on, so their loss falls and then rises."""
    chats = {"train": [(f"what follows {i}?", f"{i + 1} follows {i}") for i in range(11)]}
    chats["test"] = [(question, f"{i + 2} precedes {i}") for i, (question, _) in enumerate(chats["train"])]
    for split, pairs in chats.items():
        lines = (json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in pairs)
        (tmp_path / f"{split}.jsonl").write_text("".join(lines))
    run, display = run_dry(
        base,
        "chat_eval=null",
        f"sources.chats={{path: {tmp_path}/*.jsonl}}",
        "sft.data={spelling: null, chats: {task: conversations, source: chats, validation: {split: test}}}",
        "sft={horizon: {steps: 14}, lr_scale: 8, hand_on: best}",
        "run.monitor={validate_every_steps: 1, evaluate: {every_steps: 5, suites: {text: {task: bpb, tokens: 256}}}}",
    )
    assert computed_stages(display) == ["4-sft"]
    series = [json.loads(line) for line in (run.folder.stages / "4-sft" / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["metrics"]["val/loss"] for line in series if "val/loss" in line["metrics"]}
    best = min(losses, key=losses.__getitem__)
    assert losses[1] > losses[best] + 0.05 < losses[14]
    assert [line["step"] for line in series if "eval/text" in line["metrics"]] == [5, 10, 14]
    report = run.folder.report.read_text()
    choice = f"It passed on the model of step {best}, because its validation loss of {losses[best]:.4f} is the lowest; "
    assert f"{choice}that of the last step, 14, is {losses[14]:.4f}." in report
    assert re.search(r"- sft: suites during training took \d+% of the time, planned \d+%\.", report)
