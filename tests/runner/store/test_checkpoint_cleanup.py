"""Tests of what a finished stage leaves: output and record, no checkpoints, and a digest that `run` does not change."""

from __future__ import annotations

import pytest

from nanochat.errors import StageError
from nanochat.runner.process import execute_stage
from nanochat.runner.store.record import StageRecord


def test_checkpoints_of_a_finished_stage_are_deleted_but_count_as_disk_space(finished):
    """Disk space is planned and measured for the stage at its largest. The checkpoint has 1,000 bytes here."""
    records = finished.first.records(finished.base)
    for stage in ("pretrain", "sft"):
        folder = finished.stage_folder(stage)
        assert not folder.checkpoints.exists() and (folder.model / "model.safetensors").is_file()
        left = sum(path.stat().st_size for path in folder.path.rglob("*") if path.is_file() and path != folder.record)
        assert records[stage].measured.disk_bytes >= left + 1000


def test_kept_checkpoints_survive_a_later_run_that_does_not_keep_its_own(bench):
    """The later run takes the stage from the cache, so the checkpoints are not its own."""
    bench.run("run.checkpoint.keep_when_done=true")
    bench.run("name=other")
    assert (bench.stage_folder("pretrain").checkpoints / "step_00000004" / "weights.bin").is_file()


def test_checkpoints_are_kept_until_the_record_is_written(bench, monkeypatch):
    """A stage that is killed before that can still resume."""

    def killed(record, path):
        raise KeyboardInterrupt

    bench.run(last="tokenizer")
    with monkeypatch.context() as patch:
        patch.setattr(StageRecord, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            bench.run(last="pretrain")
    assert (bench.stage_folder("pretrain").checkpoints / "step_00000004").is_dir()


def test_checkpoints_left_by_a_kill_are_deleted_by_the_next_run(bench, monkeypatch):
    """Whole or half deleted, the stage comes from cache and its folder is swept."""
    with monkeypatch.context() as patch:
        patch.setattr(execute_stage, "delete_checkpoints", lambda folder: None)
        bench.run()
    pretrain, sft = bench.stage_folder("pretrain"), bench.stage_folder("sft")
    sft.checkpoints.rename(sft.path / ".deleting-checkpoints")
    bench.calls()
    bench.run()
    assert bench.calls() == []
    assert not pretrain.checkpoints.exists()
    assert not (sft.path / ".deleting-checkpoints").exists()


def test_failed_stage_keeps_its_checkpoints(bench):
    bench.control(pretrain="fail")
    with pytest.raises(StageError):
        bench.run()
    folder = bench.stage_folder("pretrain")
    (folder.checkpoints / "step_00000002").mkdir(parents=True)
    with pytest.raises(StageError):
        bench.run()
    assert (folder.checkpoints / "step_00000002").is_dir()


@pytest.mark.parametrize(
    "change", ["run.monitor.validate_tokens=64", "run.monitor={prompts: [a, b], sample_every_steps: 2}"]
)
def test_monitoring_does_not_change_the_output_digest(finished, change):
    """Pretraining runs again with other monitoring, which changes its results and samples, but no later stage runs."""
    before = finished.first.records(finished.base)["pretrain"]
    finished.calls()
    after = finished.run(change, force=("pretrain",)).records(finished.base)["pretrain"]
    assert finished.calls() == ["pretrain"]
    assert before.output_files != after.output_files
    assert before.output_digest == after.output_digest


def test_changed_weights_change_the_output_digest(finished):
    """Otherwise later stages would keep results of the old weights."""
    first = finished.first.records(finished.base)["pretrain"]
    second = finished.run("seed=7").records(finished.base)["pretrain"]
    assert first.output_digest != second.output_digest
