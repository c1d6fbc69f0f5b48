"""The pretrain stage: what it writes, its schedule, and that a stopped run ends like one that never stopped."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import mlx.core as mx
import numpy as np
import pytest

from nanochat.checkpoint import load_model, load_tokenizer
from nanochat.data.documents import single_pass
from nanochat.errors import InterruptedRun, StageError
from nanochat.model.config import GPTConfig
from nanochat.model.dispatch import token_losses
from nanochat.optim.groups import OptimizerConfig
from nanochat.optim.schedules import ScheduleConfig
from nanochat.plan.specs import PretrainSpec, WeightedSource
from nanochat.stages import pretrain as stage
from nanochat.storage.layout import list_checkpoints

STEPS = 10
MONITOR = {
    "micro_batch_size": 3,
    "validate_every_steps": 4,
    "validate_tokens": 64,
    "sample_every_steps": 5,
    "prompts": ("line",),
    "checkpoint_every_steps": 3,
}
OUTPUTS = (
    "out/model/model.safetensors",
    "out/optimizer.safetensors",
    "out/samples.md",
    "out/result.json",
    "metrics.jsonl",
)


@pytest.fixture
def spec(documents):
    return make_spec(documents, steps=STEPS)


def make_spec(documents, *, steps, **changes):
    fields = {
        "model": GPTConfig(
            sequence_len=16, vocab_size=300, n_layer=2, n_head=2, n_kv_head=1, n_embd=32, window_pattern="SL"
        ),
        "data": (WeightedSource(source=documents, weight=1.0),),
        "steps": steps,
        "tokens_per_step": 4 * 16,
        "optimizer": OptimizerConfig(lr_scale=2.0),  # so small a batch halves the rates
        "schedule": ScheduleConfig(steps=steps, warmup_steps=2, warmdown_steps=4),
        "weight_decay": 0.1,
        "buffer_documents": 8,
        "init_from": None,
        "seed": 3,
    }
    return PretrainSpec(**{**fields, **changes})


def run(context):
    context.write_result(stage.run(context.job, context))


def contents(folder):
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


def series(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


class StopAtCall:
    """A `should_stop` that is true at its n-th call: after a step, or inside a validation."""

    def __init__(self, call):
        self.left = call

    def __call__(self):
        self.left -= 1
        return self.left == 0


def test_pretrain_reports_the_loss_and_bpb_of_the_saved_model(make_context, upstream, spec, documents, tmp_path):
    """The test recomputes bpb and loss from the saved model, token by token in float64."""
    context = make_context(spec, upstream=upstream, **MONITOR)
    run(context)
    metrics = json.loads((context.out / "result.json").read_text())["metrics"]
    model, tokenizer = load_model(context.out / "model"), load_tokenizer(context.out / "model")
    assert model.config.vocab_size == tokenizer.vocab_size
    assert metrics["parameters"] == sum(value.size for value in model.named_parameters().values())
    assert (metrics["steps"], metrics["tokens"], metrics["skipped_steps"]) == (STEPS, STEPS * 64, 0)

    texts = single_pass(documents, "validation", base=tmp_path)
    ids = [i for text in texts for i in (tokenizer.bos_id, *tokenizer.encode(text))][: 64 + 1]
    nats = byte_count = 0.0
    for row in range(4):
        inputs, targets = ids[16 * row : 16 * row + 16], ids[16 * row + 1 : 16 * row + 17]
        losses = np.array(token_losses(model, mx.array([inputs]), mx.array([targets])), np.float64)[0]
        sizes = [len(tokenizer.id_to_bytes(i)) for i in targets]
        nats += sum(loss for loss, size in zip(losses, sizes, strict=True) if size)
        byte_count += sum(sizes)
    assert metrics["bpb"] == pytest.approx(nats / math.log(2) / byte_count, rel=1e-5)

    logged = series(context.folder.path)
    losses = [line["metrics"]["train/loss"] for line in logged if "train/loss" in line["metrics"]]
    assert len(losses) == STEPS
    assert losses[0] == pytest.approx(math.log(tokenizer.vocab_size), rel=0.02), "an untrained model must guess"
    assert losses[-1] < losses[0] - 0.5
    assert metrics["loss"] == losses[-1]
    assert [line["step"] for line in logged if "val/bpb" in line["metrics"]] == [4, 8, 10]


def test_logged_rates_follow_the_schedule(make_context, upstream, spec):
    """The rate rises over 2 steps to Muon's 0.02 and falls by half a cosine over the last 4 (computed by hand)."""
    context = make_context(spec, upstream=upstream, **MONITOR)
    run(context)
    rates = [line["metrics"]["train/lr"] for line in series(context.folder.path) if "train/lr" in line["metrics"]]
    expected = [0.5, 1, 1, 1, 1, 1, 1, 0.853553, 0.5, 0.146447]
    assert rates == pytest.approx([0.02 * value for value in expected], rel=1e-5)


def test_timings_are_logged_apart_from_reproducible_metrics(make_context, upstream, spec):
    context = make_context(spec, upstream=upstream, **MONITOR)
    run(context)
    timings = series(context.folder.path, "timings.jsonl")
    assert [line["step"] for line in timings] == list(range(1, STEPS + 1))
    assert set(timings[0]["metrics"]) == {"train/tokens_per_second", "train/step_seconds", "train/peak_memory_bytes"}
    values = timings[0]["metrics"]
    assert values["train/tokens_per_second"] == pytest.approx(64 / values["train/step_seconds"])


def test_pretrain_stopped_anywhere_ends_like_an_undisturbed_run(make_context, upstream, spec):
    """Weights, moments, metrics and samples have the same bits. Calls 5 and 14 stop inside a validation."""
    undisturbed = make_context(spec, upstream=upstream, name="undisturbed", **MONITOR)
    run(undisturbed)
    for call in (1, 5, 9, 14):
        name = f"stopped{call}"
        stopped = make_context(spec, upstream=upstream, name=name, should_stop=StopAtCall(call), **MONITOR)
        with pytest.raises(InterruptedRun, match="saved"):
            run(stopped)
        assert not (stopped.out / "result.json").exists()
        run(make_context(spec, upstream=upstream, name=name, **MONITOR))
        assert contents(stopped.folder.path) == contents(undisturbed.folder.path), f"stopped at call {call}"


def test_pretrain_resumes_before_a_damaged_checkpoint_with_the_same_result(make_context, upstream, spec, capsys):
    undisturbed = make_context(spec, upstream=upstream, name="undisturbed", **MONITOR)
    run(undisturbed)
    stopped = make_context(spec, upstream=upstream, name="stopped", should_stop=StopAtCall(9), **MONITOR)
    with pytest.raises(InterruptedRun):
        run(stopped)
    newest = max(list_checkpoints(stopped.folder.checkpoints).items())[1]
    os.truncate(newest / "optimizer.safetensors", 100)
    capsys.readouterr()
    run(make_context(spec, upstream=upstream, name="stopped", **MONITOR))
    assert f"checkpoint {newest} is damaged (optimizer.safetensors has 100 bytes" in capsys.readouterr().out
    assert contents(stopped.folder.path) == contents(undisturbed.folder.path)


def test_pretrain_results_do_not_depend_on_intervals(make_context, upstream, spec):
    """Weights and losses have the same bits however often the stage saves, samples and validates."""
    runs = [{"micro_batch_size": 3}, {**MONITOR, "checkpoint_every_steps": 1, "validate_every_steps": 1}]
    folders = []
    for i, execution in enumerate(runs):
        context = make_context(spec, upstream=upstream, name=f"run{i}", **execution)
        run(context)
        folders.append(context.folder.path)
    weights = [(folder / "out/model/model.safetensors").read_bytes() for folder in folders]
    losses = [[line for line in series(folder) if "train/loss" in line["metrics"]] for folder in folders]
    assert weights[0] == weights[1]
    assert losses[0] == losses[1]


def test_pretrain_seed_changes_the_model(make_context, upstream, documents):
    losses = []
    for seed in (0, 1):
        spec = make_spec(documents, steps=2, seed=seed, schedule=ScheduleConfig(steps=2))
        context = make_context(spec, upstream=upstream, name=f"seed{seed}", micro_batch_size=4)
        losses.append(stage.run(context.job, context).metrics["loss"])
    assert losses[0] != losses[1]


def test_pretrain_starts_from_a_given_model(make_context, upstream, documents, spec):
    first = make_context(spec, upstream=upstream, name="first", **MONITOR)
    run(first)
    frozen = OptimizerConfig(lr_scale=1e-30)
    second_spec = make_spec(
        documents, steps=1, optimizer=frozen, schedule=ScheduleConfig(steps=1), init_from=str(first.out / "model")
    )
    second = make_context(second_spec, name="second", micro_batch_size=4)
    run(second)
    before, after = load_model(first.out / "model"), load_model(second.out / "model")
    for name, value in before.named_parameters().items():
        np.testing.assert_allclose(np.array(after.named_parameters()[name]), np.array(value), atol=1e-20, err_msg=name)


def test_pretrain_refuses_a_model_of_a_different_shape_with_the_difference(make_context, upstream, documents, spec):
    first = make_context(spec, upstream=upstream, name="first", **MONITOR)
    run(first)
    other = GPTConfig(sequence_len=16, vocab_size=300, n_layer=3, n_head=2, n_kv_head=1, n_embd=32, window_pattern="SL")
    second = make_context(make_spec(documents, steps=1, model=other, init_from=str(first.out / "model")), name="second")
    with pytest.raises(StageError, match="n_layer 2 there, 3 here"):
        run(second)


def test_pretrain_killed_at_random_moments_ends_like_an_undisturbed_run(make_context, upstream, documents):
    """SIGKILL ends a real process at seeded moments, and the same command starts it again."""
    spec = make_spec(documents, steps=24, schedule=ScheduleConfig(steps=24, warmdown_steps=10))
    execution = {**MONITOR, "checkpoint_every_steps": 2}
    undisturbed = make_context(spec, upstream=upstream, name="undisturbed", **execution)
    run(undisturbed)
    killed = make_context(spec, upstream=upstream, name="killed", **execution)
    job = killed.folder.job
    job.write_text(killed.job.model_dump_json())
    moments = sorted(random.Random(7).sample(range(1, 28), 2))
    for lines in moments:
        process = subprocess.Popen([sys.executable, "-m", "nanochat.stages", str(job)], stdout=subprocess.DEVNULL)
        kill_when(process, lambda lines=lines: count_lines(killed.folder.path) >= lines)
        assert process.returncode == -signal.SIGKILL
    subprocess.run([sys.executable, "-m", "nanochat.stages", str(job)], check=True, stdout=subprocess.DEVNULL)
    assert contents(killed.folder.path) == contents(undisturbed.folder.path)
    shutil.rmtree(killed.folder.path)


def count_lines(folder):
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_when(process, condition):
    deadline = time.monotonic() + 60
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.wait()


def test_pretrain_results_do_not_depend_on_the_token_cache(make_context, spec, upstream):
    """A run that was stopped and resumed with a token cache has the same bits; it writes the cache only once."""
    plain = make_context(spec, name="plain", upstream=upstream, **MONITOR)
    run(plain)
    saved = plain.folder.path.parent / "cached" / "checkpoints"
    stop = {"should_stop": lambda: bool(list_checkpoints(saved))}
    stopped = make_context(spec, name="cached", upstream=upstream, token_cache=True, **stop, **MONITOR)
    with pytest.raises(InterruptedRun):
        run(stopped)
    (folder,) = (stopped.base / "tokens").iterdir()
    made = (folder / "parts.json").stat().st_mtime_ns
    run(make_context(spec, name="cached", upstream=upstream, token_cache=True, **MONITOR))
    assert (folder / "parts.json").stat().st_mtime_ns == made
    for name in OUTPUTS:
        assert (stopped.folder.path / name).read_bytes() == (plain.folder.path / name).read_bytes(), name
