"""Tests that data is downloaded before the first stage, and refused if it does not have the format a stage reads."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.errors import InterruptedRun, PreflightError
from nanochat.runner.preflight.data_checks import check_inputs
from nanochat.runner.preflight.fetch import fetch_sources
from nanochat.runner.process.interrupts import Interrupts


def test_problems_with_data_of_all_stages_are_reported_before_the_first_begins(bench):
    pq.write_table(pa.table({"body": ["a"] * 50}), bench.folder / "text.parquet")
    pq.write_table(pa.table({"question": ["q"]}), bench.folder / "test.parquet")
    (bench.folder / "chats.jsonl").write_text("{}\n" * 20)
    with pytest.raises(PreflightError) as caught:
        bench.run(
            f"sources.text.path={bench.folder}/text.parquet",
            f"sources.math={{path: {bench.folder}/test.parquet}}",
            "chat_eval.suites.math={task: gsm8k, source: math}",
        )
    text = str(caught.value)
    assert "3 problems to fix" in text
    assert "text.parquet: no column `text`; its columns are: body" in text
    assert "20 of 20 conversations cannot be used" in text
    assert "test.parquet row 1: gsm8k: a row must have `question` and `answer`" in text
    assert all(f"source `{name}`" in text for name in ("text", "chats", "math"))
    assert bench.calls() == []
    assert not (bench.base / "stages").exists()


def test_data_of_cached_and_unselected_stages_is_not_checked(bench):
    (bench.folder / "chats.jsonl").write_text("{}\n" * 20)
    bench.run(last="base_eval")
    assert bench.calls() == ["tokenizer", "pretrain", "base_eval"]
    with pytest.raises(PreflightError, match="1 problem to fix"):
        bench.run()


def test_validation_documents_are_required_only_by_stages_that_use_them(bench):
    """The tokenizer measures its compression on some. Pretraining without validation does not need any."""
    (bench.folder / "text.txt").write_text("only one line")

    def findings(stage, *flags):
        plan = bench.prepare(*flags).plan
        return check_inputs([plan.stage(stage)], bench.base)

    assert "no validation document" in findings("tokenizer")[0]
    assert len(findings("pretrain")) == len(findings("base_eval")) == 1
    assert findings("pretrain", "run.monitor.validate_every_steps=null") == []
    assert findings("base_eval", "base_eval.suites.bpb.split=train") == []


def test_fingerprints_stay_the_same_when_bad_lines_are_removed(bench):
    """A bad line is one that reading skips: in text one that is not UTF-8, in chats one that parsing refuses."""
    text, chats = bench.folder / "text.txt", bench.folder / "chats.jsonl"
    clean = bench.prepare()
    text.write_bytes(b"\xe9t\xe9\n" + text.read_bytes())
    chats.write_text(chats.read_text() + '{"prompt": "hello"}\n{"prompt": "x", "completion": "y", "label": false}\n')
    assert [stage.source_digests for stage in bench.prepare().plan.stages] == [
        stage.source_digests for stage in clean.plan.stages
    ]
    chats.write_text(chats.read_text() + '{"prompt": "hello", "completion": "you"}\n')
    assert bench.prepare().plan.stage("sft").source_digests != clean.plan.stage("sft").source_digests


def test_fetch_sources_shows_progress_and_stops_on_a_signal(bench, monkeypatch):
    overrides = ["chat_eval=null", "sources.text={uri: 'hf://datasets/a/b'}"]
    stage, interrupts = bench.prepare(*overrides).plan.stage("tokenizer"), Interrupts()
    monkeypatch.setattr("nanochat.runner.preflight.fetch.fetch", lambda source, progress, **_: progress(50, 200))
    fetch_sources(stage, bench.base, display=bench.display, interrupts=interrupts)
    assert bench.display.progress == [("download text", 0.25, "50 B of 200 B")]
    interrupts.count = 1
    with pytest.raises(InterruptedRun, match="while downloading `text`"):
        fetch_sources(stage, bench.base, display=bench.display, interrupts=interrupts)


def test_failed_download_ends_the_run_before_any_stage(bench, monkeypatch):
    def refuse(source, **_):
        raise PreflightError("no route")

    monkeypatch.setattr("nanochat.runner.preflight.fetch.fetch", refuse)
    with pytest.raises(PreflightError, match="no route"):
        bench.run()
    assert bench.calls() == []
