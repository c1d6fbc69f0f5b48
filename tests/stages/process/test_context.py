"""What a stage writes while it runs (metric series, heartbeat), upstream folders, and seeds."""

from __future__ import annotations

import hashlib
import json
import math

import pytest

from nanochat.errors import StageError
from nanochat.plan.specs.job import Job
from nanochat.runner.report.stage_files import stage_notes
from nanochat.stages.process.context import StageContext, derive_seed
from nanochat.storage.integrity import describe_file


def test_log_metrics_appends_a_line_per_step_with_exact_floats(make_context, tokenizer_spec):
    context = make_context(tokenizer_spec)
    context.log_metrics(1, {"train/loss": 0.1 + 0.2, "train/lr": 1e-30})
    context.log_metrics(2, {"train/loss": 2.0})
    lines = context.folder.metrics.read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "metrics": {"train/loss": 0.30000000000000004, "train/lr": 1e-30}},
        {"step": 2, "metrics": {"train/loss": 2.0}},
    ]


def test_restore_progress_brings_back_series_and_samples_of_a_checkpoint(make_context, tokenizer_spec, tmp_path):
    """Whatever has happened to the files since: they grew, were damaged, or were lost."""
    context = make_context(tokenizer_spec)
    files = [context.folder.metrics, context.folder.timings, context.folder.samples]
    context.log_metrics(1, {"a": 1.0})
    context.log_timings(1, {"b": 1.0})
    (context.out / "samples.md").write_text("# Samples\n")
    context.copy_progress(tmp_path)
    before = [path.read_bytes() for path in files]
    context.log_metrics(2, {"a": 2.0})
    context.folder.samples.write_text("# Swindles\n")
    context.folder.timings.unlink()
    context.restore_progress(tmp_path)
    assert [path.read_bytes() for path in files] == before
    context.restore_progress(None)
    assert not any(path.exists() for path in files)


def test_log_metrics_refuses_values_that_are_not_finite(make_context, tokenizer_spec):
    with pytest.raises(AssertionError, match="not finite"):
        make_context(tokenizer_spec).log_metrics(1, {"loss": math.nan})


def test_a_note_stays_one_line_whatever_the_name_of_a_file(make_context, tokenizer_spec, capsys):
    context = make_context(tokenizer_spec)
    context.notify_user("a\nb\u2028c.txt:3: not UTF-8")
    context.folder.log.write_text(capsys.readouterr().out)
    assert stage_notes({"tokenizer": context.folder}) == {"tokenizer": [r"a\nb\nc.txt:3: not UTF-8"]}


def test_heartbeat_is_limited_in_rate_and_fraction(make_context, tokenizer_spec):
    context = make_context(tokenizer_spec)
    context.report_progress(0.25, "step 1")
    context.report_progress(0.5, "step 2")
    heartbeat = json.loads(context.folder.progress.read_text())
    assert (heartbeat["fraction"], heartbeat["text"]) == (0.25, "step 1")
    context.report_progress(1.5, "done")
    assert json.loads(context.folder.progress.read_text())["fraction"] == 1.0


def test_a_heartbeat_that_cannot_be_written_ends_nothing(make_context, tokenizer_spec, monkeypatch):
    """Only the display of the parent suffers from a full disk. A checkpoint that cannot be written ends the stage."""

    def fail(*_arguments, **_settings):
        raise OSError(28, "No space left on device")

    context = make_context(tokenizer_spec)
    monkeypatch.setattr("nanochat.stages.process.context.write_text", fail)
    context.report_progress(1.0, "done")
    assert not context.folder.progress.exists()


def test_upstream_error_names_the_missing_stage(make_context, tokenizer_spec):
    context = make_context(tokenizer_spec, upstream={"pretrain": "/somewhere/out"})
    assert str(context.upstream("sft", "pretrain")) == "/somewhere/out"
    assert context.upstream("sft") is None
    with pytest.raises(StageError, match="output of sft"):
        context.require_upstream("sft")


def test_upstream_and_the_model_to_start_from_are_compared_with_the_job_before_they_are_loaded(
    make_context, tokenizer_spec, tmp_path
):
    """Whatever happened since the job was written, a stage never computes from other files than its record says."""
    paths = [tmp_path / "pretrain" / "out" / name for name in ("model/weights", "optimizer", "other")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"good {path.name}")
    context = make_context(tokenizer_spec, upstream={"pretrain": str(tmp_path / "pretrain" / "out")})
    inputs = {str(path): describe_file(path) for path in paths[:2]}
    job = context.job.model_copy(update={"inputs": inputs})
    checked = Job.model_validate_json(job.model_dump_json())

    def context_of(job):
        return StageContext(job, base=context.base, runtime=context.runtime)

    assert context_of(checked).require_upstream("pretrain") == tmp_path / "pretrain" / "out"
    for path in paths[:2]:
        path.write_text(f"evil {path.name}")
        for load in (
            lambda: context_of(checked).upstream("sft", "pretrain"),
            lambda: context_of(checked).model_to_start_from(str(tmp_path / "pretrain" / "out" / "model")),
        ):
            with pytest.raises(StageError, match=f"{path.name} has changed since it was written; run the same command"):
                load()
        path.write_text(f"good {path.name}")
    paths[1].unlink()
    with pytest.raises(StageError, match="optimizer is missing"):
        context_of(checked).upstream("pretrain")


def test_derive_seed_is_the_documented_hash():
    digest = hashlib.sha256(b"nanochat/42/pretrain/init").hexdigest()
    assert derive_seed(42, "pretrain", "init") == int(digest[:16], 16) // 2


def test_derive_seed_differs_by_seed_and_by_every_name():
    seeds = [derive_seed(s, *n) for s in (0, 1) for n in (("sft",), ("pretrain",), ("sft", "order"), ("sft", 1))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
