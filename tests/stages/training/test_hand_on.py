"""`hand_on: best` passes on the model with the lowest validation loss, also when a run is stopped or killed around it.

The toy learns eleven answers by heart. The held-out answers contradict them, so their loss falls and then rises.
"""

from __future__ import annotations

import json
import os

import mlx.core as mx
import numpy as np
import pytest

from nanochat.checkpoint.config_file import load_config
from nanochat.checkpoint.model_folder import load_tokenizer
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import StageError
from nanochat.model.gpt import GPT
from nanochat.optim.groups import OptimizerConfig
from nanochat.plan.specs.inputs import SftItem
from nanochat.stages import pretrain, sft
from nanochat.stages.training.checkpoints import TrainingCheckpoints
from nanochat.storage.layout import list_checkpoints
from nanochat.tokenizer.chat_format import Conversation, Message, render

STEPS = 9
MONITOR = {
    "micro_batch_size": 3,
    "validate_every_steps": 1,
    "sample_every_steps": STEPS,
    "prompts": ("what follows 3?",),
}
TRAINED = [(f"what follows {i}?", f"{i + 1} follows {i}") for i in range(11)]
HELD_OUT = [(f"what follows {i}?", f"{i + 2} precedes {i}") for i in range(11)]


def write(path, pairs):
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in pairs))


@pytest.fixture
def chats(tmp_path):
    folder = tmp_path / "chats"
    folder.mkdir()
    write(folder / "train.jsonl", TRAINED)
    write(folder / "test.jsonl", HELD_OUT)
    return SourceSpec(name="chats", path=(str(folder / "*.jsonl"),))


@pytest.fixture
def make_spec(make_sft_spec, chats):
    """A function that returns a specification of fine-tuning that overfits to the chats."""
    item = SftItem(
        name="chats",
        task="conversations",
        source=chats,
        split="train",
        max_examples=None,
        repeat=1,
        validation_split="test",
    )
    return lambda **changes: make_sft_spec(
        item, **{"steps": STEPS, "optimizer": OptimizerConfig(lr_scale=8.0), **changes}
    )


@pytest.fixture
def runs(make_runs, pretrained):
    return make_runs(sft, upstream=pretrained, **MONITOR)


def losses_in_float64(checkpoint, pairs):
    """Return the loss per token of the answers and the bits per byte of their text, computed by the plain network.

    Each chat is a row of its own. The logits are computed without compiled functions, and the rest in float64.
    """
    tokenizer = load_tokenizer(checkpoint)
    model = GPT(load_config(checkpoint))
    model.set_parameters(mx.load(str(checkpoint / "model.safetensors")))
    nats = text_nats = tokens = size = 0.0
    for question, answer in pairs:
        rendered = render(tokenizer, Conversation((Message("user", question), Message("assistant", answer))))
        logits = np.array(model(mx.array([rendered.ids[:-1]])), dtype=np.float64)[0]
        top = logits.max(axis=1)
        totals = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        for at, (target, is_answer) in enumerate(zip(rendered.ids[1:], rendered.mask[1:], strict=True)):
            if is_answer:
                loss = totals[at] - logits[at, target]
                nats, tokens = nats + loss, tokens + 1
                text_nats += loss if len(tokenizer.id_to_bytes(target)) else 0.0
        size += len(answer.encode())
    return nats / tokens, text_nats / np.log(2) / size


def bits(folder):
    return [(folder / name).read_bytes() for name in ("model.safetensors", "config.json", "tokenizer.model")]


def test_sft_passes_on_exactly_the_best_step_of_a_model_that_overfits(runs, make_spec):
    """The best step is that of the lowest loss in float64 among the checkpoints of all steps of another run."""
    last = runs.run(make_spec(), "last", checkpoint_every_steps=1, checkpoint_keep=1000)
    checkpoints = list_checkpoints(last.folder.checkpoints)
    expected = {step: losses_in_float64(path, HELD_OUT) for step, path in sorted(checkpoints.items())}
    best = min(expected, key=lambda step: expected[step][0])
    neighbours = [expected[step][0] - expected[best][0] for step in (1, best - 1, best + 1, STEPS)]
    assert min(neighbours) > 0.05, "the loss must fall to the best step and rise after it"

    logged = {line["step"]: line["metrics"] for line in runs.series(last) if "val/loss" in line["metrics"]}
    assert list(logged) == list(range(1, STEPS + 1))
    for step, (loss, bpb) in expected.items():
        assert logged[step]["val/loss"] == pytest.approx(loss, rel=1e-5)
        assert logged[step]["val/bpb"] == pytest.approx(bpb, rel=1e-5)

    context = runs.run(make_spec(hand_on="best"), "best")
    assert bits(context.folder.model) == bits(checkpoints[best])
    assert context.folder.optimizer.read_bytes() == (checkpoints[best] / "optimizer.safetensors").read_bytes()
    assert bits(last.folder.model) == bits(checkpoints[STEPS])
    metrics = runs.metrics(context)
    assert (metrics["steps"], metrics["handed_on_step"]) == (STEPS, best)
    assert metrics["val_loss"] == logged[best]["val/loss"]
    assert metrics["bpb"] == logged[best]["val/bpb"]
    assert metrics["last_val_loss"] == logged[STEPS]["val/loss"]
    assert runs.metrics(last)["val_loss"] == logged[STEPS]["val/loss"]
    assert context.folder.metrics.read_bytes() == last.folder.metrics.read_bytes()


def test_sft_stopped_around_its_best_step_passes_on_the_same_bits(runs, make_spec):
    """A step asks three times whether to stop: after it, and in its validation of two batches. Step 5 is the best."""
    runs.options["checkpoint_keep"] = 1
    spec = make_spec(hand_on="best")
    runs.check_stopped(spec, (13, 14, 16), runs.run(spec))


@pytest.mark.slow
def test_sft_killed_around_its_best_step_passes_on_the_same_bits(runs, make_spec):
    """Each step logs two lines: its training, and its validation."""
    runs.check_killed(make_spec(hand_on="best"), (8, 10, 15))


@pytest.mark.parametrize("is_lost", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_sft_resumes_before_a_best_checkpoint_that_is_damaged(runs, make_spec, capsys, is_lost):
    """Steps after it could not pass on the best model, so it trains again from a checkpoint that can."""
    spec = make_spec(hand_on="best")
    undisturbed = runs.run(spec, "undisturbed")
    best = int(runs.metrics(undisturbed)["handed_on_step"])
    stopped = runs.stop(spec, "stopped", 3 * 8)
    snapshot = list_checkpoints(stopped.folder.checkpoints)[best]
    assert max(list_checkpoints(stopped.folder.checkpoints)) > best + 1
    capsys.readouterr()
    if is_lost:
        snapshot.rename(stopped.folder.path / "lost")
    else:
        os.truncate(snapshot / "model.safetensors", 100)
    runs.run(spec, "stopped")
    assert f"the best model so far, of step {best}, is damaged" in capsys.readouterr().out
    assert runs.contents(stopped) == runs.contents(undisturbed)


@pytest.mark.slow
def test_sft_does_not_pass_on_a_best_model_that_is_damaged_at_the_end(runs, make_spec, monkeypatch):
    """The next attempt notices it before it trains, and starts over."""
    spec = make_spec(hand_on="best")
    undisturbed = runs.run(spec, "undisturbed")
    choose = TrainingCheckpoints.choose_model

    def damage(checkpoints, position):
        folder = list_checkpoints(checkpoints.context.folder.checkpoints)[position.best_step]
        os.truncate(folder / "model.safetensors", 100)
        return choose(checkpoints, position)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingCheckpoints, "choose_model", damage)
        with pytest.raises(StageError, match=r"checkpoint .*step_.* is damaged \(model.safetensors has 100 bytes"):
            runs.run(spec, "damaged")
    damaged = runs.run(spec, "damaged")
    assert runs.contents(damaged) == runs.contents(undisturbed)


def test_pretrain_passes_on_its_best_step(make_runs, upstream, make_pretrain_spec):
    """Rates far too large make the loss rise again. The best step is that of the lowest logged validation loss."""
    spec = make_pretrain_spec(steps=6, optimizer=OptimizerConfig(lr_scale=30.0), hand_on="best")
    runs = make_runs(pretrain, upstream=upstream, **MONITOR)
    context = runs.run(spec, checkpoint_every_steps=1, checkpoint_keep=1000)
    losses = {
        line["step"]: line["metrics"]["val/loss"] for line in runs.series(context) if "val/loss" in line["metrics"]
    }
    best = min(losses, key=losses.__getitem__)
    assert best < 6
    assert bits(context.folder.model) == bits(list_checkpoints(context.folder.checkpoints)[best])
    metrics = runs.metrics(context)
    assert (metrics["handed_on_step"], metrics["val_loss"]) == (best, losses[best])
