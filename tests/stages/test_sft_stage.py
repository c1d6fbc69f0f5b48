"""The sft stage: it starts from pretraining's weights and moments, learns the answers, and resumes exactly."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest

from nanochat.checkpoint.model_folder import load_model, load_tokenizer
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import StageError
from nanochat.optim.groups import OptimizerConfig
from nanochat.plan.specs.inputs import SftItem
from nanochat.stages import sft as stage
from nanochat.stages.process.context import NOTE_PREFIX
from nanochat.tokenizer.chat_format import Conversation, Message, render

MONITOR = {
    "micro_batch_size": 3,
    "sample_every_steps": 4,
    "prompts": ("Spell the word: cat", 300 * "7"),
    "checkpoint_every_steps": 3,
}
PAIRS = [(f"what follows {i}?", f"{i + 1} follows {i}") for i in range(23)]


@pytest.fixture
def upstream(pretrained):
    return pretrained


@pytest.fixture
def chats(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in PAIRS))
    return SourceSpec(name="chats", path=(str(path),))


@pytest.fixture
def make_spec(make_sft_spec, chats):
    """A function that returns a specification of fine-tuning on the chats and other items."""
    item = SftItem(name="chats", task="conversations", source=chats, split="train", max_examples=None, repeat=1)
    return lambda *items, **changes: make_sft_spec(item, *items, **changes)


@pytest.fixture
def spec(make_spec):
    return make_spec(epochs=5.0)


@pytest.fixture
def runs(make_runs, upstream):
    return make_runs(stage, upstream=upstream, **MONITOR)


def test_sft_trains_on_every_answer_token_once_per_epoch(runs, spec):
    """The test counts them by rendering each conversation: the mask's tokens, without a row's first position."""
    context = runs.run(spec)
    metrics = runs.metrics(context)
    tokenizer = load_tokenizer(context.out / "model")
    masks = [render(tokenizer, Conversation((Message("user", q), Message("assistant", a)))).mask for q, a in PAIRS]
    assert metrics["tokens"] == 5 * sum(sum(mask[1:]) for mask in masks)
    assert (metrics["conversations"], metrics["dropped_conversations"], metrics["epochs"]) == (5 * 23, 0, 5)
    losses = [line["metrics"]["train/loss"] for line in runs.series(context)]
    assert len(losses) == metrics["steps"]
    assert losses[-1] < losses[0] - 1


def test_sft_rate_is_constant_and_then_falls_with_the_rows_consumed(runs, spec):
    """The rate is Muon's 0.02 for half of the progress, then falls linearly towards 0, which no step reaches."""
    rates = [line["metrics"]["train/lr"] / 0.02 for line in runs.series(runs.run(spec))]
    half = [rate for rate in rates if rate > 0.999]
    assert len(rates) * 0.4 <= len(half) <= len(rates) * 0.7
    falling = rates[len(half) :]
    assert all(later < earlier for earlier, later in itertools.pairwise(falling))
    assert 0 < falling[-1] < 0.6


def test_sft_with_a_horizon_in_minutes_follows_the_clock_and_resumes_with_the_time_that_is_left(
    make_runs, upstream, make_spec
):
    """The times are those of the same test of pretraining. The rate falls linearly after half of the time."""
    runs = make_runs(stage, upstream=upstream, micro_batch_size=4)
    rates = runs.check_timed(make_spec(minutes=0.5), steps=17, stop=9, resumed_steps=18)
    assert rates == pytest.approx([0.02 * value for value in (*[1] * 10, *(2 * (15 - k) / 15 for k in range(8, 15)))])


def test_sft_starts_with_the_moments_of_pretraining(runs, spec, tmp_path):
    with_moments = runs.run(spec, "with")
    (tmp_path / "pretrain" / "out" / "optimizer.safetensors").unlink()
    without = runs.run(spec, "without")
    assert [runs.metrics(context)["has_moments"] for context in (with_moments, without)] == [1, 0]
    first, second = runs.series(with_moments), runs.series(without)
    assert first[0]["metrics"]["train/loss"] == second[0]["metrics"]["train/loss"]
    assert first[1]["metrics"]["train/loss"] != second[1]["metrics"]["train/loss"]


def test_sft_stopped_anywhere_ends_like_an_undisturbed_run(runs, spec):
    undisturbed = runs.run(spec)
    steps = int(runs.metrics(undisturbed)["steps"])
    assert steps >= 8
    runs.check_stopped(spec, (1, steps - 3, steps), undisturbed)


def spelling_item(**fields):
    """Return a mixture item of forty generated words."""
    source = SourceSpec(name="words", builtin="spelling")
    given = {"name": "words", "task": "simple_spelling", "split": "train", "max_examples": 40, "repeat": 1}
    return SftItem(source=source, **(given | fields))


@pytest.mark.slow
def test_sft_killed_at_a_random_moment_ends_like_an_undisturbed_run(runs, make_spec):
    """SIGKILL ends a real process that trains on two mixed tasks for several epochs."""
    spec = make_spec(spelling_item(), steps=24)
    runs.check_killed(spec, random.Random(11).sample(range(1, 24), 1))


def test_sft_counts_refused_rows_in_a_part_of_a_split(runs, spec, chats):
    path = Path(chats.path[0])
    path.write_text("broken\n" + path.read_text())
    item = spec.data[0].model_copy(update={"split": "train[:8]"})
    metrics = runs.metrics(runs.run(spec.model_copy(update={"data": (item,), "epochs": 1.0})))
    assert (metrics["conversations"], metrics["refused_conversations"]) == (8, 1)


def test_sft_weights_set_the_conversations_of_each_task_in_an_epoch(runs, make_spec, capsys):
    """The 23 chats are three quarters of an epoch, so the other quarter has 23 / 3, rounded to 8, of the 40 words."""
    spec, words = make_spec(epochs=1.0), spelling_item(weight=1.0)
    spec = spec.model_copy(update={"data": (spec.data[0].model_copy(update={"weight": 3.0}), words)})
    assert runs.metrics(runs.run(spec))["conversations"] == 31
    assert "an epoch has 31 conversations: 23 of chats, 8 of the 40 of words" in capsys.readouterr().out


def test_sft_warns_if_weights_leave_out_most_of_a_task(runs, make_spec, capsys):
    """With equal weights the 23 chats allow for 23 of 400 words. 400 / 23 is 17.4."""
    spec, words = make_spec(epochs=1.0), spelling_item(weight=1.0, max_examples=400)
    runs.run(spec.model_copy(update={"data": (spec.data[0].model_copy(update={"weight": 1.0}), words)}))
    assert (
        f"{NOTE_PREFIX}warning: the weights of `sft.data` leave only 23 of 400 conversations of words, because chats "
        "has 23; set `sft.data.chats.repeat: 18` to use more in the same shares, or give no task a weight"
    ) in capsys.readouterr().out


def test_sft_horizon_in_tokens_repeats_the_data(runs, make_spec):
    by_tokens = make_spec(tokens=20 * 256)
    assert runs.metrics(runs.run(by_tokens))["steps"] == 20


def test_sft_refuses_rows_longer_than_the_context(runs, make_spec):
    with pytest.raises(StageError, match="128 is longer than the model's context 64"):
        runs.run(make_spec(epochs=1.0, sequence_len=128))


def test_sft_starts_from_a_given_model(runs, upstream, make_spec):
    model = f"{upstream['pretrain']}/model"
    spec = make_spec(epochs=5.0, init_from=model, optimizer=OptimizerConfig(lr_scale=1e-30))
    context = runs.run(spec, upstream={})
    before = load_model(context.folder.path.parent / "pretrain" / "out" / "model").named_parameters()
    for name, value in load_model(context.out / "model").named_parameters().items():
        np.testing.assert_allclose(np.array(value), np.array(before[name]), atol=1e-20, err_msg=name)


def test_sft_logs_how_many_conversations_were_cut_dropped_and_refused(runs, spec, chats, capsys):
    """The data has two broken lines, one conversation too long for a row, and one whose first exchange alone fits."""
    path, long = Path(chats.path[0]), "many words " * 40
    two_rounds = [("user", "hi"), ("assistant", "yo"), ("user", long), ("assistant", "so")]
    rows = [{"question": long, "answer": "so"}, [{"role": role, "content": text} for role, text in two_rounds]]
    path.write_text(path.read_text() + "{}\nbroken\n" + "".join(json.dumps(row) + "\n" for row in rows))
    metrics = runs.metrics(runs.run(spec.model_copy(update={"epochs": 2.0})))
    names = ("conversations", "cut_conversations", "dropped_conversations", "refused_conversations")
    assert [metrics[name] for name in names] == [2 * 24, 2, 2, 2]
    log = capsys.readouterr().out
    assert "note: chats: 2 rows not used: " in log and f"{path}:24: expected `messages`" in log
    assert "conversations: 48 trained on, 2 of them cut to 65 tokens; 2 dropped; 2 rows refused" in log
