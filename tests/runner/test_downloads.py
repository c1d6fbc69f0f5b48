"""What a stage reads from the hub is downloaded before it begins."""

from __future__ import annotations

import pytest

from nanochat.errors import InterruptedRun, PreflightError
from nanochat.runner.process.fetch_sources import fetch_sources
from nanochat.runner.process.interrupts import Interrupts


@pytest.fixture
def stage(bench):
    overrides = ["chat_eval=null", "sources.text={uri: 'hf://datasets/a/b'}"]
    return bench.prepare(*overrides).plan.stage("tokenizer")


def test_progress_is_shown_and_the_commit_kept(bench, stage, monkeypatch):
    """The record then says which version of the data was used."""

    def fetch(source, *, base, offline, progress):
        progress(50, 200)

    monkeypatch.setattr("nanochat.runner.process.fetch_sources.fetch", fetch)
    monkeypatch.setattr(
        "nanochat.runner.process.fetch_sources.resolve_revision", lambda source, base, offline: "c0ffee"
    )
    commits = fetch_sources(stage, bench.base, display=bench.display, interrupts=Interrupts())
    assert commits == {"text": "c0ffee"}
    assert bench.display.beats == [("download text", 0.25, "50 B of 200 B")]


def test_a_signal_ends_the_download(bench, stage, monkeypatch):
    """At its next sign of life."""
    monkeypatch.setattr("nanochat.runner.process.fetch_sources.fetch", lambda source, progress, **_: progress(1, 2))
    interrupts = Interrupts()
    interrupts.count = 1
    with pytest.raises(InterruptedRun, match="while downloading `text`"):
        fetch_sources(stage, bench.base, display=bench.display, interrupts=interrupts)


def test_what_cannot_be_downloaded_ends_the_run_with_exit_3(bench, monkeypatch):
    """And the run is marked as failed."""

    def refuse(source, **_):
        raise PreflightError("no route")

    monkeypatch.setattr("nanochat.runner.process.fetch_sources.fetch", refuse)
    with pytest.raises(PreflightError, match="no route"):
        bench.run()
    assert bench.calls() == []
