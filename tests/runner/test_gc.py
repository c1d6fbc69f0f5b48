"""gc drops what no run refers to, and nothing else, also when it was killed before."""

from __future__ import annotations

import shutil

import pytest

from nanochat.errors import PreflightError
from nanochat.runner.folders import StageFolder, stage_folders
from nanochat.runner.gc import collect, find_unreferenced
from nanochat.runner.locks import stage_lock


def test_only_stages_that_no_run_names_are_dropped(bench):
    """After the second run's folder is deleted, its own stages are what is left over."""
    bench.run()
    second = bench.run("sft.horizon.steps=5", "name=second")
    assert find_unreferenced(bench.base) == []
    shutil.rmtree(second.folder.path)
    assert {one.folder.stage for one in find_unreferenced(bench.base)} == {"sft", "chat_eval"}
    assert {one.folder.stage for one in collect(bench.base)} == {"sft", "chat_eval"}
    assert collect(bench.base) == []
    bench.calls()
    bench.run()
    assert bench.calls() == []


def test_a_locked_stage_is_kept(bench):
    """Somebody works in it."""
    run = bench.run()
    shutil.rmtree(run.folder.path)
    folder = next(f for f in stage_folders(bench.base) if f.stage == "pretrain")
    with stage_lock(folder):
        assert "pretrain" not in {one.folder.stage for one in collect(bench.base)}
    assert folder.record.exists()


def test_what_a_killed_gc_left_is_dropped_by_the_next(bench, monkeypatch):
    """A folder is renamed before it is deleted, so that a half-deleted one never looks done."""
    run = bench.run()
    shutil.rmtree(run.folder.path)

    def killed(path):
        (path / "record.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("nanochat.runner.gc.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            collect(bench.base)
    assert len(list((bench.base / "stages").glob("*/.deleting-*"))) == 1
    collect(bench.base)
    assert not list((bench.base / "stages").glob("*/*"))


def test_a_run_that_cannot_be_read_stops_gc(bench):
    """What it refers to is not known, so nothing is deleted."""
    run = bench.run()
    run.folder.state.write_text("{")
    with pytest.raises(PreflightError, match="cannot be read"):
        collect(bench.base)
    assert all(StageFolder(f.path).record.exists() for f in stage_folders(bench.base))
