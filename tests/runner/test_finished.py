"""What a finished stage leaves: its output and record, no checkpoints; and a digest that `run` does not change."""

from __future__ import annotations

import pytest

from nanochat.errors import StageError
from nanochat.runner.process import run_stage as execute
from nanochat.storage.layout import StageFolder, stage_folders


def folder_of(bench, stage: str) -> StageFolder:
    return next(f for f in stage_folders(bench.base) if f.stage == stage)


def test_checkpoints_go_when_the_stage_is_done(bench):
    """They would fill the disk; the output holds the model."""
    bench.run()
    for stage in ("pretrain", "sft"):
        assert not folder_of(bench, stage).checkpoints.exists()
        assert (folder_of(bench, stage).out / "model" / "model.safetensors").is_file()


def test_checkpoints_stay_where_the_recipe_says_so_also_for_the_next_recipe(bench):
    """A later run of the stage from cache, which does not ask to keep them, did not make them."""
    bench.run("run.checkpoint.keep_when_done=true")
    bench.run("name=other")
    assert (folder_of(bench, "pretrain").checkpoints / "step_00000004" / "weights.bin").is_file()


def test_what_they_took_is_in_the_record(bench):
    """The plan's disk column is of the stage at its largest, so is what is measured: 1,000 bytes of checkpoint here."""
    run = bench.run()
    folder = folder_of(bench, "pretrain")
    left = sum(path.stat().st_size for path in folder.path.rglob("*") if path.is_file() and path != folder.record)
    assert run.records(bench.base)["pretrain"].measured.disk_bytes >= left + 1000


def test_checkpoints_stay_until_the_record_is_written(bench, monkeypatch):
    """Killed before it: the stage can still go on from them."""

    def killed(folder, record):
        raise KeyboardInterrupt

    bench.run(last="tokenizer")
    with monkeypatch.context() as patch:
        patch.setattr(execute, "write_record", killed)
        with pytest.raises(KeyboardInterrupt):
            bench.run(last="pretrain")
    assert (folder_of(bench, "pretrain").checkpoints / "step_00000004").is_dir()


def test_a_kill_between_record_and_deletion_is_made_good_by_the_next_run(bench, monkeypatch):
    """Whole or half deleted, the stage comes from cache and its folder is swept."""
    with monkeypatch.context() as patch:
        patch.setattr(execute, "delete_checkpoints", lambda folder: None)
        bench.run()
    pretrain, sft = folder_of(bench, "pretrain"), folder_of(bench, "sft")
    sft.checkpoints.rename(sft.path / ".deleting-checkpoints")
    bench.calls()
    bench.run()
    assert bench.calls() == []
    assert not pretrain.checkpoints.exists()
    assert not (sft.path / ".deleting-checkpoints").exists()


def test_a_failed_stage_keeps_its_checkpoints(bench):
    """The same command goes on from them."""
    bench.control(pretrain="fail")
    folder = None
    with pytest.raises(StageError):
        bench.run()
    folder = folder_of(bench, "pretrain")
    (folder.checkpoints / "step_00000002").mkdir(parents=True)
    with pytest.raises(StageError):
        bench.run()
    assert (folder.checkpoints / "step_00000002").is_dir()


@pytest.mark.parametrize("change", ["run.monitor.validate_tokens=64", "run.monitor.prompts=[a, b]"])
def test_what_is_monitored_does_not_change_what_later_stages_read(bench, change):
    """Pretraining runs again with other monitoring: its results and samples differ, and nothing after it runs."""
    before = bench.run().records(bench.base)["pretrain"]
    bench.calls()
    after = bench.run(change, force=("pretrain",)).records(bench.base)["pretrain"]
    assert bench.calls() == ["pretrain"]
    assert before.output_files != after.output_files
    assert before.output_digest == after.output_digest


def test_other_weights_do_change_it(bench):
    """Else a forced stage that came out differently would leave stale results behind it."""
    first = bench.run().records(bench.base)["pretrain"]
    second = bench.run("seed=7").records(bench.base)["pretrain"]
    assert first.output_digest != second.output_digest
