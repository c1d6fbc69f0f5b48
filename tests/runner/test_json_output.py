"""`--json`: the keys are those that schemas/json_output.md lists, and nothing else is printed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from nanochat.cli.json_output import print_json
from nanochat.cli.run import main
from nanochat.errors import StageError
from nanochat.runner.report.results import Result


@pytest.fixture(scope="module")
def runs(shared_bench):
    """The bench after four runs: finished with notes and an expectation, failed, without a lost stage, and damaged."""
    bench = shared_bench
    bench.control(pretrain="notes")
    finished = bench.run("expect={base_eval.bpb: '< 2'}")
    finished.folder.report.unlink()
    bench.control(sft="fail")
    with pytest.raises(StageError):
        bench.run("name=failed", "pretrain.horizon={minutes: 1}")
    bench.control()
    lost = bench.run("name=lost", "chat_eval.suites.spelling.max_problems=3")
    (bench.base / lost.state.entry("chat_eval").folder / "record.json").unlink()
    finished.folders(bench.base)["base_eval"].sources.write_text("[1]")
    (bench.base / "runs" / "damaged" / "20200101-000000").mkdir(parents=True)
    (bench.base / "runs" / "damaged" / "20200101-000000" / "run.json").write_text("{")
    return bench


def print_of(bench, monkeypatch, capsys, *arguments, code=0):
    """The document that a command prints with `--json`, and its standard error."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(bench.base))
    monkeypatch.chdir(bench.folder)
    capsys.readouterr()
    assert main([*arguments, "--json"]) == code
    shown = capsys.readouterr()
    return json.loads(shown.out), shown.err


@pytest.fixture
def run_json(bench, monkeypatch, capsys):
    """A function that runs a command with `--json` where no run has been, and returns what it prints."""
    return lambda *arguments, code=0: print_of(bench, monkeypatch, capsys, *arguments, code=code)


@pytest.fixture
def json_of_runs(runs, monkeypatch, capsys):
    """The same on the machine with runs."""
    return lambda *arguments, code=0: print_of(runs, monkeypatch, capsys, *arguments, code=code)


def test_json_of_ls_has_the_documented_keys_and_every_run(check_keys, json_of_runs):
    shown, errors = json_of_runs("ls")
    assert errors == ""
    assert check_keys("ls", shown) == {"sweeps[]{}", "damaged[].sweep"}  # none here; see tests/sweeps
    runs = {run["name"]: run for run in shown["runs"]}
    assert [(name, run["status"], run["is_reproducible"]) for name, run in runs.items()] == [
        ("tiny", "finished", True),
        ("failed", "failed", False),
        ("lost", "finished", True),
    ]
    assert [stage["status"] for stage in runs["failed"]["stages"]] == [
        "cached",
        "finished",
        "finished",
        "failed",
        "not run",
    ]
    assert list(runs["lost"]["lost"]) == ["chat_eval"]
    assert [damaged["run"] for damaged in shown["damaged"]] == ["damaged/20200101-000000"]
    spelling = next(result for result in runs["tiny"]["results"] if result["metric"] == "spelling")
    assert (spelling["value"], spelling["stderr"], spelling["count"], spelling["chance"]) == (0.75, 0.125, 12, 0.5)


def test_ls_shows_status_stages_and_what_is_not_reproducible(runs, monkeypatch, capsys):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(runs.base))
    assert main(["ls"]) == 0
    lines = {line.split("/")[0]: " ".join(line.split()[1:]) for line in capsys.readouterr().out.splitlines()[1:]}
    assert lines["tiny"] == "finished 5/5 chat_eval.spelling 0.75, base_eval.bpb 1.5"
    assert lines["failed"] == "failed 3/5 base_eval.bpb 1.5 (trained for a wall time: not reproducible)"
    assert "not reproducible" not in lines["tiny"] + lines["lost"]


def test_ls_tells_a_reader_how_to_remove_a_run(runs, monkeypatch, capsys):
    """A program that counts lines does not see it."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(runs.base))
    shown = []
    for is_terminal in (False, True):
        monkeypatch.setattr("sys.stdout.isatty", lambda answer=is_terminal: answer)
        assert main(["ls"]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[1].startswith(shown[0])
    hint = f"to remove a run, delete its folder in {runs.base / 'runs'}; `nanochat-run gc` deletes its results\n"
    assert shown[1].removeprefix(shown[0]) == hint


def test_ls_shows_scores_and_not_their_counts(runs, monkeypatch, capsys):
    """The base evaluation's `bpb` comes with the bytes and tokens that it was measured on."""

    def with_counts(records):
        return [
            Result(stage="base_eval", metric=metric, value=value)
            for metric, value in (("bpb.bytes", 50219.0), ("bpb", 1.5), ("bpb.tokens", 16086.0))
        ]

    monkeypatch.setattr("nanochat.runner.report.run_summary.list_results", with_counts)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(runs.base))
    assert main(["ls"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("failed/")]
    assert line.split()[1:5] == ["failed", "3/5", "base_eval.bpb", "1.5"] and "bytes" not in line


@pytest.mark.parametrize(
    ("metrics", "shown"),
    [
        (("mmlu", "chat_core", "chat_core_centred"), "chat_eval.mmlu 0.5"),
        (("arc", "mmlu", "chat_core", "chat_core_centred"), "chat_eval.chat_core 0.5, chat_eval.arc 0.5"),
    ],
)
def test_ls_shows_the_mean_of_chat_suites_only_if_there_are_several(runs, monkeypatch, capsys, metrics, shown):
    results = [Result(stage="chat_eval", metric=metric, value=0.5) for metric in metrics]
    monkeypatch.setattr("nanochat.runner.report.run_summary.list_results", lambda records: results)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(runs.base))
    assert main(["ls"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("tiny/")]
    assert line.endswith(f"  {shown}")


def test_json_of_report_has_the_documented_keys_and_writes_nothing(check_keys, json_of_runs):
    shown, errors = json_of_runs("report", "tiny")
    assert errors == ""
    assert check_keys("report", shown) == {"lost.*"}  # nothing of this run is lost
    assert shown["expectations"] == [{"metric": "base_eval.bpb", "condition": "< 2", "value": 1.5, "is_met": True}]
    assert shown["notes"] == {"pretrain": ["step_00000008 is damaged", "half"]}
    assert shown["report"] is None
    assert not (Path(shown["folder"]) / "report.md").exists()


def test_json_of_compare_says_why_a_result_is_not_there(check_keys, json_of_runs):
    shown, errors = json_of_runs("compare", "tiny", "failed", "lost")
    assert errors == ""
    assert check_keys("compare", shown) == set()
    rows = {row["result"]: row["cells"] for row in shown["results"]}
    values = {name: [cell if isinstance(cell, str) else cell["value"] for cell in row] for name, row in rows.items()}
    assert values["chat_eval.spelling"] == [0.75, "not run", "missing"]
    assert values["sft.train/loss"] == [2.0, "failed", 2.0]
    assert {"field": "chat_eval.suites.spelling.max_problems", "cells": ["4", "4", "3"]} in shown["recipe"]
    assert {"field": "pretrain.horizon.minutes", "cells": ["default", "1.0", "default"]} in shown["recipe"]


def test_compare_with_an_unfinished_run_says_what_is_missing_and_how_to_continue(runs, capsys, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(runs.base))
    assert main(["compare", "tiny", "failed"]) == 0
    shown = capsys.readouterr().out
    assert "| chat_eval.spelling | 0.75 ± 0.12 (n 12) | not run |" in shown
    assert re.search(
        r"Not finished: failed/\S+ \(failed\) has 3 of 5 stages: sft failed; chat_eval not run\. It ended with: "
        r".*the loss was not finite.*\. Continue it with `nanochat-run tiny.yaml`\.",
        shown,
    )
    assert "Only in part" not in shown
    assert re.search(r"failed/\S+: pretrain trained for 1 minute of wall time: not reproducible", shown)


def test_json_of_plan_has_the_documented_keys(check_keys, runs, json_of_runs):
    (runs.folder / "more").mkdir()
    (runs.folder / "more" / "a.csv").write_text("question,answer\na,b\n")
    (runs.folder / "more" / "empty.csv").touch()
    changes = ("--set", "sources.chats.path=more", "--set", "expect={base_eval.bpb: '< 2'}")
    shown, errors = json_of_runs("plan", str(runs.recipe), *changes)
    assert errors == ""
    assert check_keys("plan", shown) == set()
    assert [stage["status"] for stage in shown["stages"]] == ["cached"] * 2 + ["run"] * 3
    why, errors = json_of_runs("plan", str(runs.recipe), "--set", "sft.horizon.steps=5", "--why", "sft")
    assert errors == ""
    assert why["stage"] == "sft"
    assert why["changes"] == ["sft.horizon.steps: 4 -> 5"]


def test_json_of_plan_with_problems_prints_them_on_both_streams(run_json, bench):
    (bench.folder / "text.txt").unlink()
    shown, errors = run_json("plan", str(bench.recipe), code=3)
    assert "text.txt" in shown["missing"][0]
    assert "problem to fix" in errors


def test_json_of_data_has_the_documented_keys(check_keys, run_json, bench):
    (bench.folder / "table.csv").write_text("question,answer\nhow,\nmany,three\n")
    (bench.folder / "more").mkdir()
    (bench.folder / "more" / "a.txt").write_text("a first line\na second line\n")
    (bench.folder / "more" / "empty.txt").touch()
    changes = ("--set", "sources.table={path: table.csv}", "--set", "sources.text.path=more")
    shown, errors = run_json(
        "data", str(bench.recipe), *changes, "--set", "sft.data.more={task: conversations, source: table}"
    )
    assert errors == ""
    assert check_keys("data", shown) == set()
    sources = {source["source"]: source for source in shown["sources"]}
    assert sources["table"]["splits"] == []
    (preview,) = sources["table"]["previews"]
    assert preview["columns"] == ["question", "answer"]
    assert preview["rows"] == [["how", ""], ["many", "three"]]
    assert sources["chats"]["splits"][0]["count"] == 1


def test_json_of_data_that_cannot_be_read_holds_the_error_and_exits_3(run_json, bench):
    (bench.folder / "chats.jsonl").write_text('{"question": "no answer"}\n')
    shown, errors = run_json("data", str(bench.recipe), "chats", code=3)
    assert "chats.jsonl:1" in shown["sources"][0]["splits"][0]["error"]
    assert "chats.jsonl:1" in errors


def test_json_of_a_mistake_is_a_message_and_no_document(bench, monkeypatch, capsys):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(bench.base))
    assert main(["report", "nothing", "--json"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and "no run `nothing`" in shown.err


def test_json_has_null_for_numbers_that_are_not_finite(capsys):
    print_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": "x\x1b"}})
    shown = capsys.readouterr().out
    assert json.loads(shown) == {"a": None, "b": [None, 1.5], "c": {"d": "x\x1b"}}
    assert "\x1b" not in shown
