"""The pretrain stage: what it writes, its schedule, and that a stopped run ends like one that never stopped."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import random
import re
import shutil

import mlx.core as mx
import numpy as np
import pytest

from nanochat.checkpoint.model_folder import load_model, load_tokenizer
from nanochat.data.documents import single_pass
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import InterruptedRun, StageError
from nanochat.model.config import GPTConfig
from nanochat.model.dispatch import token_losses
from nanochat.optim.groups import OptimizerConfig
from nanochat.optim.schedules import TIME_PARTS, ScheduleConfig
from nanochat.plan.specs.inputs import SftItem
from nanochat.runtime import Runtime
from nanochat.stages import pretrain as stage
from nanochat.stages import sft
from nanochat.storage.layout import list_checkpoints
from nanochat.train import step

STEPS = 10
MONITOR = {
    "micro_batch_size": 3,
    "validate_every_steps": 4,
    "validate_tokens": 64,
    "sample_every_steps": 5,
    "prompts": ("line", 300 * "7"),
    "checkpoint_every_steps": 3,
}


@pytest.fixture
def spec(make_pretrain_spec):
    return make_pretrain_spec(steps=STEPS, schedule=ScheduleConfig(steps=STEPS, warmup_steps=2, warmdown_steps=4))


@pytest.fixture
def runs(make_runs, upstream):
    return make_runs(stage, upstream=upstream, **MONITOR)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Where the first test that needs a whole run leaves a copy of its folder."""
    return tmp_path_factory.mktemp("finished") / "stage"


@pytest.fixture
def undisturbed(runs, spec, finished):
    """The context of a whole run, in a folder of the test's own."""
    if not finished.exists():
        shutil.copytree(runs.run(spec, "undisturbed").folder.path, finished)
    context = runs.make_context(spec, name="undisturbed", **runs.options)
    shutil.copytree(finished, context.folder.path, dirs_exist_ok=True)
    return context


def test_pretrain_reports_the_loss_and_bpb_of_the_saved_model(runs, undisturbed, documents, tmp_path):
    """The test recomputes bpb and loss from the saved model, token by token in float64."""
    metrics, folder = runs.metrics(undisturbed), undisturbed.out / "model"
    model, tokenizer = load_model(folder), load_tokenizer(folder)
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

    logged = runs.series(undisturbed)
    losses = [line["metrics"]["train/loss"] for line in logged if "train/loss" in line["metrics"]]
    assert len(losses) == STEPS
    assert losses[0] == pytest.approx(math.log(tokenizer.vocab_size), rel=0.02), "an untrained model must guess"
    assert losses[-1] < losses[0] - 0.5
    assert metrics["loss"] == losses[-1]
    assert [line["step"] for line in logged if "val/bpb" in line["metrics"]] == [4, 8, 10]


def test_logged_rates_follow_the_schedule(runs, undisturbed):
    """The rate rises over 2 steps to Muon's 0.02 and falls by half a cosine over the last 4 (computed by hand)."""
    logged = [line["metrics"] for line in runs.series(undisturbed)]
    rates = [metrics["train/lr"] for metrics in logged if "train/lr" in metrics]
    expected = [0.5, 1, 1, 1, 1, 1, 1, 0.853553, 0.5, 0.146447]
    assert rates == pytest.approx([0.02 * value for value in expected], rel=1e-5)


def test_timings_are_logged_apart_from_reproducible_metrics(runs, undisturbed):
    timings = runs.series(undisturbed, "timings.jsonl")
    assert [line["step"] for line in timings] == list(range(1, STEPS + 1))
    assert set(timings[0]["metrics"]) == {"train/tokens_per_second", "train/step_seconds", "train/peak_memory_bytes"}
    values = timings[0]["metrics"]
    assert values["train/tokens_per_second"] == pytest.approx(64 / values["train/step_seconds"])


def test_pretrain_stopped_anywhere_ends_like_an_undisturbed_run(runs, spec, undisturbed):
    """Weights, moments, metrics and samples have the same bits. Calls 5 and 14 stop inside a validation."""
    runs.check_stopped(spec, (1, 5, 9, 14), undisturbed)


@pytest.mark.cpu
@pytest.mark.usefixtures("metal_path")
def test_pretrain_stopped_on_the_path_of_metal_ends_like_an_undisturbed_run(runs, spec):
    runs.check_stopped(spec, (9,), runs.run(spec))


def test_pretrain_resumes_before_a_damaged_checkpoint_with_the_same_result(runs, spec, undisturbed, capsys):
    stopped = runs.stop(spec, "stopped", 9)
    newest = max(list_checkpoints(stopped.folder.checkpoints).items())[1]
    os.truncate(newest / "optimizer.safetensors", 100)
    capsys.readouterr()
    runs.run(spec, "stopped")
    assert f"checkpoint {newest} is damaged (optimizer.safetensors has 100 bytes" in capsys.readouterr().out
    assert runs.contents(stopped) == runs.contents(undisturbed)


def test_pretrain_resumes_with_the_metrics_and_samples_of_the_checkpoint_if_they_are_damaged(runs, spec, undisturbed):
    stopped = runs.stop(spec, "stopped", 9)
    first = stopped.folder.metrics.read_text()
    stopped.folder.metrics.write_text(first.replace("1", "2"))
    stopped.folder.samples.unlink()
    runs.run(spec, "stopped")
    assert runs.contents(stopped) == runs.contents(undisturbed)


def test_pretrain_results_do_not_depend_on_intervals(runs, spec):
    """Weights and losses have the same bits however often the stage saves, samples and validates."""
    often = runs.run(spec, "often", checkpoint_every_steps=1, validate_every_steps=1)
    never = dict.fromkeys(("checkpoint_every_steps", "validate_every_steps", "sample_every_steps"))
    contexts = [often, runs.run(spec, "never", **never)]
    weights = [(context.out / "model/model.safetensors").read_bytes() for context in contexts]
    losses = [[line for line in runs.series(context) if "train/loss" in line["metrics"]] for context in contexts]
    assert weights[0] == weights[1]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("rule", "least", "most"), [("keep", 0, 0), ("crop", 0.5, 0.95)])
def test_pretrain_reports_the_share_of_text_that_it_threw_away(runs, make_pretrain_spec, rule, least, most):
    """Rows have 17 tokens, and a document has about a hundred."""
    spec = make_pretrain_spec(steps=4, long_documents=rule)
    assert least <= runs.metrics(runs.run(spec))["cropped_frac"] <= most


@pytest.mark.parametrize(
    ("validate_every_steps", "message"),
    [
        (1, r"^no val/bpb after step 1: the model has diverged: its loss is nan"),
        (None, r"^the model has diverged: .* last step"),
    ],
)
def test_pretrain_that_diverges_in_its_last_update_fails(runs, make_pretrain_spec, validate_every_steps, message):
    """The loss of the only step is finite, and its update is far too large. A resumed run fails in the same way."""
    spec = make_pretrain_spec(steps=1, optimizer=OptimizerConfig(lr_scale=1e38))
    for _ in range(2):
        with pytest.raises(StageError, match=message):
            runs.run(spec, validate_every_steps=validate_every_steps)


@pytest.mark.parametrize("validate_every_steps", [1, None])
def test_pretrain_whose_last_step_is_skipped_passes_on_the_model_before_it(
    runs, make_pretrain_spec, monkeypatch, capsys, validate_every_steps
):
    """The batch of step 4 is bad. Had it failed the stage, the same command would fail for ever."""
    norms, measure = itertools.count(1), step.grad_norm
    monkeypatch.setattr(step, "grad_norm", lambda grads: measure(grads) if next(norms) < 4 else mx.array(math.nan))
    context = runs.run(make_pretrain_spec(steps=4), validate_every_steps=validate_every_steps)
    before, after = load_model(list_checkpoints(context.folder.checkpoints)[3]), load_model(context.folder.model)
    for name, value in before.named_parameters().items():
        np.testing.assert_array_equal(np.array(after.named_parameters()[name]), np.array(value), err_msg=name)
    assert (runs.metrics(context)["steps"], runs.metrics(context)["skipped_steps"]) == (4, 1)
    assert "note: left out 1 step at the end, because loss or gradients were not finite; " in capsys.readouterr().out


def test_pretrain_that_skips_its_last_step_because_the_model_is_ruined_fails(runs, make_pretrain_spec):
    """The first update leaves finite weights whose logits are not finite, and no validation notices it."""
    spec = make_pretrain_spec(steps=2, optimizer=OptimizerConfig(lr_scale=1e30))
    with pytest.raises(StageError, match=r"^the model has diverged: its logits are not finite after the last step\n"):
        runs.run(spec, validate_every_steps=None)


def test_pretrain_seed_changes_the_model(runs, make_pretrain_spec):
    specs = [make_pretrain_spec(steps=2, seed=seed) for seed in (0, 1)]
    losses = [runs.metrics(runs.run(spec, f"seed{spec.seed}"))["loss"] for spec in specs]
    assert losses[0] != losses[1]


def test_pretrain_starts_from_a_given_model(runs, make_pretrain_spec, spec, undisturbed):
    """A recipe without a tokenizer says nothing of the vocabulary, so that its default may be smaller than theirs."""
    given = undisturbed.out / "model"
    frozen, model = OptimizerConfig(lr_scale=1e-30), dataclasses.replace(spec.model, vocab_size=265)
    second_spec = make_pretrain_spec(steps=1, optimizer=frozen, model=model, init_from=str(given))
    second = runs.run(second_spec, "second", upstream={})
    before, after = load_model(given), load_model(second.out / "model")
    for name, value in before.named_parameters().items():
        np.testing.assert_allclose(np.array(after.named_parameters()[name]), np.array(value), atol=1e-20, err_msg=name)


def test_pretrain_refuses_a_model_of_a_different_shape_with_the_difference(runs, make_pretrain_spec, spec, undisturbed):
    other = GPTConfig.from_dict({**spec.model.to_dict(), "n_layer": 3})
    second = make_pretrain_spec(steps=1, model=other, init_from=str(undisturbed.out / "model"))
    with pytest.raises(StageError, match="n_layer 2 there, 3 here"):
        runs.run(second, "second", upstream={})


@pytest.mark.slow
def test_pretrain_killed_at_random_moments_ends_like_an_undisturbed_run(make_runs, upstream, make_pretrain_spec):
    """SIGKILL ends a real process at seeded moments, and the same command starts it again.

    Every document is several times as long as a row, so that the process resumes in the middle of one.
    """
    spec = make_pretrain_spec(steps=24, schedule=ScheduleConfig(steps=24, warmdown_steps=10))
    runs = make_runs(stage, upstream=upstream, **{**MONITOR, "checkpoint_every_steps": 2})
    runs.check_killed(spec, sorted(random.Random(7).sample(range(1, 28), 2)))


def test_pretrain_results_do_not_depend_on_the_token_cache(runs, spec, undisturbed):
    """A run that was stopped and resumed with a token cache has the same bits; it writes the cache only once."""
    saved = undisturbed.folder.path.parent / "cached" / "checkpoints"
    with pytest.raises(InterruptedRun):
        runs.run(spec, "cached", token_cache=True, should_stop=lambda: bool(list_checkpoints(saved)))
    (folder,) = (undisturbed.base / "tokens").iterdir()
    made = (folder / "parts.json").stat().st_mtime_ns
    resumed = runs.run(spec, "cached", token_cache=True)
    assert (folder / "parts.json").stat().st_mtime_ns == made
    assert runs.contents(resumed) == runs.contents(undisturbed)


def test_pretrain_with_a_horizon_in_minutes_follows_the_clock_and_resumes_with_the_time_that_is_left(
    make_runs, upstream, make_pretrain_spec
):
    """2 free steps and 15 of 2 s make half a minute. Stopped after 9 steps, it has used 14 s.

    Then 2 steps count 14 / 9 s each, and 7 more are needed: 18. The rate falls by half a cosine over the last 40 %.
    """
    schedule = ScheduleConfig(steps=TIME_PARTS, warmup_steps=4, warmdown_steps=round(0.4 * TIME_PARTS))
    spec = make_pretrain_spec(steps=None, minutes=0.5, schedule=schedule)
    runs = make_runs(stage, upstream=upstream, micro_batch_size=4)
    rates = runs.check_timed(spec, steps=17, stop=9, resumed_steps=18)
    falling = [(1 - math.cos(math.pi * (15 - k) / 6)) / 2 for k in range(9, 15)]
    assert rates == pytest.approx([0.02 * value for value in (0.25, 0.5, 0.75, *[1] * 8, *falling)])


@pytest.mark.slow
def test_pretrain_with_a_horizon_in_minutes_killed_at_a_random_moment_resumes_with_its_used_time(
    make_runs, upstream, make_pretrain_spec
):
    spec = make_pretrain_spec(steps=None, minutes=1 / 30)
    runs = make_runs(stage, upstream=upstream, micro_batch_size=4, checkpoint_every_steps=5, checkpoint_keep=1000)
    killed = runs.kill(spec, "killed", lines=20)
    step, path = max(list_checkpoints(killed.folder.checkpoints).items())
    used = json.loads((path / "state.json").read_text())["used_seconds"]
    assert 0 < used < 2
    runs.run(spec, "killed")
    assert runs.metrics(killed)["steps"] > step
    states = [
        json.loads((p / "state.json").read_text())
        for _, p in sorted(list_checkpoints(killed.folder.checkpoints).items())
    ]
    seconds = [state["used_seconds"] for state in states]
    assert seconds == sorted(seconds)
    assert seconds[-1] >= 2 > seconds[-2]


@pytest.mark.parametrize(("name", "names"), [("NVIDIA RTX 9999", ["NVIDIA RTX 9999"]), ("Apple M5 Pro", [])])
def test_unknown_gpu_is_named_once_in_a_run(
    make_context, make_pretrain_spec, make_sft_spec, upstream, monkeypatch, capsys, name, names
):
    """The fine-tuning that follows does not repeat the note. A known GPU has none, and its MFU is logged."""
    monkeypatch.setattr("nanochat.stages.training.training.device_name", lambda: name)
    words = SourceSpec(name="words", builtin="spelling")
    item = SftItem(name="w", task="simple_spelling", source=words, split="train", max_examples=8, repeat=1)
    folders = dict(upstream)
    for module, spec in ((stage, make_pretrain_spec(steps=2, sequence_len=64)), (sft, make_sft_spec(item, steps=1))):
        context = make_context(spec, name=spec.stage, upstream=folders)
        context.runtime = Runtime(backend="metal", dtype="float32", blas="any", threads=1)
        module.run(context.job, context)
        folders = {"pretrain": str(context.out)}
        lines = context.folder.timings.read_text().splitlines()
        assert any("train/mfu" in json.loads(line)["metrics"] for line in lines) == (not names)
    assert re.findall("peak rate of (.*) is not known", capsys.readouterr().out) == names
