"""Tests that hub data is downloaded before the first stage begins."""

from __future__ import annotations

import pytest

from nanochat.errors import InterruptedRun, PreflightError
from nanochat.runner.process.fetch_sources import fetch_sources
from nanochat.runner.process.interrupts import Interrupts


@pytest.fixture
def stage(bench):
    overrides = ["chat_eval=null", "sources.text={uri: 'hf://datasets/a/b'}"]
    return bench.prepare(*overrides).plan.stage("tokenizer")


def test_fetch_sources_shows_progress_and_returns_the_commit(bench, stage, monkeypatch):
    def fetch(source, *, base, offline, progress):
        progress(50, 200)

    monkeypatch.setattr("nanochat.runner.process.fetch_sources.fetch", fetch)
    monkeypatch.setattr(
        "nanochat.runner.process.fetch_sources.resolve_revision", lambda source, base, offline: "c0ffee"
    )
    commits = fetch_sources(stage, bench.base, display=bench.display, interrupts=Interrupts())
    assert commits == {"text": "c0ffee"}
    assert bench.display.progress == [("download text", 0.25, "50 B of 200 B")]


def test_fetch_sources_stops_on_a_signal(bench, stage, monkeypatch):
    monkeypatch.setattr("nanochat.runner.process.fetch_sources.fetch", lambda source, progress, **_: progress(1, 2))
    interrupts = Interrupts()
    interrupts.count = 1
    with pytest.raises(InterruptedRun, match="while downloading `text`"):
        fetch_sources(stage, bench.base, display=bench.display, interrupts=interrupts)


def test_failed_download_ends_the_run_before_any_stage(bench, monkeypatch):
    def refuse(source, **_):
        raise PreflightError("no route")

    monkeypatch.setattr("nanochat.runner.process.fetch_sources.fetch", refuse)
    with pytest.raises(PreflightError, match="no route"):
        bench.run()
    assert bench.calls() == []
