"""The rl stage: it earns higher rewards, resumes exactly, and computes the same on several processes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from nanochat.checkpoint.model_folder import load_model, load_tokenizer, save_model
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import StageError
from nanochat.model.config import GPTConfig
from nanochat.model.dispatch import FastGPT
from nanochat.optim.groups import OptimizerConfig
from nanochat.plan.specs.suites import ChatQuestionsSpec, ChatSuiteSpec
from nanochat.plan.specs.training import RewardSpec, RlItem, RlSpec
from nanochat.stages.process.context import NOTE_PREFIX, indented
from nanochat.stages.rl import stage
from nanochat.tasks.generative.spelling import Spelling
from nanochat.tokenizer import bpe

CONFIG = GPTConfig(sequence_len=64, vocab_size=300, n_layer=2, n_head=2, n_kv_head=2, n_embd=32, window_pattern="SL")
MONITOR = {"validate_every_steps": 3, "checkpoint_every_steps": 2}
WORDS = SourceSpec(name="words", builtin="spelling")


@pytest.fixture
def upstream(tmp_path):
    """The output of an sft stage: random weights and a tokenizer."""
    out = tmp_path / "sft" / "out"
    tokenizer = bpe.train(
        ["spell the word: abc abd, a,b,c"] * 20, vocab_size=300, max_chars=9999, max_document_chars=999
    )
    model = FastGPT(GPTConfig.from_dict({**CONFIG.to_dict(), "vocab_size": tokenizer.vocab_size}))
    keys = mx.random.split(mx.random.key(5), 99)
    shapes = model.config.parameter_shapes().items()
    model.set_parameters(
        {name: 0.3 * mx.random.normal(x, key=key) for (name, x), key in zip(shapes, keys, strict=False)}
    )
    save_model(out / "model", model, tokenizer)
    return {"sft": str(out)}


def practice(task, **fields):
    """Return forty questions of a spelling task."""
    generation = {"num_samples": 1, "max_tokens": 1, "temperature": 0.0, "top_k": None}
    suite = ChatSuiteSpec(task=task, source=WORDS, split="train", max_problems=40, **generation)
    return RlItem(suite=suite, **{"weight": None, **fields})


@pytest.fixture
def make_spec():
    """A function that returns a specification in which an answer with an `e` is rewarded: nobody spells right."""

    def make(**changes):
        suite = {"task": "simple_spelling", "source": WORDS, "split": "test", "max_problems": 3, "num_samples": 2}
        fields = {
            "data": {"words": practice("simple_spelling")},
            "held_out": {"words": ChatSuiteSpec(max_tokens=4, temperature=1.0, top_k=None, **suite)},
            "steps": 8,
            "epochs": None,
            "prompts_per_step": 4,
            "samples_per_prompt": 4,
            "max_tokens": 6,
            "temperature": 1.0,
            "top_k": None,
            "centre": "group",
            "scale": "none",
            "reward": RewardSpec(form="e", form_reward=1.0),
            "clip": None,
            "kl": 0.0,
            "updates_per_step": 1,
            "optimizer": OptimizerConfig(lr_scale=0.2),
            "constant_frac": 1.0,
            "final_frac": 0.0,
            "init_from": None,
            "seed": 3,
        }
        return RlSpec(**{**fields, **changes})

    return make


@pytest.fixture
def runs(make_runs, upstream):
    return make_runs(stage, upstream=upstream, **MONITOR)


def of_steps(runs, context, name):
    return [line["metrics"][name] for line in runs.series(context) if name in line["metrics"]]


def test_rl_earns_a_higher_reward_and_shows_answers_before_and_after(runs, make_spec):
    context = runs.run(make_spec(steps=16, optimizer=OptimizerConfig(lr_scale=0.5)), validate_every_steps=8)
    rewards, metrics = of_steps(runs, context, "train/reward"), runs.metrics(context)
    assert list(metrics)[:3] == ["words_before", "score_before", "words"], "what a line has room for comes first"
    assert len(rewards) == 16
    assert np.mean(rewards[-4:]) > np.mean(rewards[:4]) + 0.3
    assert metrics["reward"] == rewards[-1]
    assert (metrics["prompts"], metrics["answers"], metrics["epochs"]) == (64, 256, 1.6)
    divergences = of_steps(runs, context, "held_out/kl")
    assert divergences[0] == 0 and metrics["kl"] == divergences[-1] > 0.01
    table = [json.loads(line) for line in (context.out / "tables" / "answers.jsonl").read_text().splitlines()]
    assert {line["step"] for line in table} == {0, 8, 16}
    assert len(table) == 3 * 3 * 2
    samples = (context.out / "samples.md").read_text()
    assert samples.count("Before, wrong:") == samples.count("After, wrong:") == 3
    first = next(line for line in table if (line["step"], line["index"], line["sample"]) == (16, 0, 0))
    assert f"After, wrong:\n\n{indented(first['output'])}" in samples


def test_rl_stopped_anywhere_ends_like_an_undisturbed_run(runs, make_spec):
    spec = make_spec(steps=4)
    runs.check_stopped(spec, (3,), runs.run(spec))


def test_rl_warns_of_held_out_questions_that_are_practised(runs, make_spec, capsys, tmp_path):
    """Both ask the three questions of one file without splits; spelling holds out words of its own."""
    rows = [{"question": f"abc {number}?", "answer": "e"} for number in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceSpec(name="rows", path=(str(tmp_path / "rows.jsonl"),))
    fields = {
        "source": source,
        "system": "",
        "num_fewshot": 0,
        "fewshot_split": "train",
        "grade": "contains",
        "program": None,
    }
    fields |= {"num_samples": 1, "max_tokens": 4, "temperature": 0.0, "top_k": None}
    mine = RlItem(suite=ChatQuestionsSpec(**fields, split="train", max_problems=2), weight=None)
    spec = make_spec(
        steps=1, data={"mine": mine}, held_out={"mine": ChatQuestionsSpec(**fields, split="test", max_problems=None)}
    )
    runs.run(spec, "equal")
    assert f"{NOTE_PREFIX}mine: the model also practises 2 of 3 held-out questions" in capsys.readouterr().out
    runs.run(make_spec(steps=1), "other")
    assert "also practises" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("centre", "reason"),
    [("group", "all answers to a question earned the same reward;"), ("none", "all answers earned a reward of 0;")],
)
def test_rl_warns_if_no_answer_had_an_advantage(runs, make_spec, capsys, centre, reason):
    warning = f"{NOTE_PREFIX}the model learned nothing: in every logged step, {reason}"
    runs.run(make_spec(steps=2, centre=centre, reward=RewardSpec(), held_out={}), "equal")
    assert warning in capsys.readouterr().out
    runs.run(make_spec(steps=2, centre=centre, held_out={}), "unequal")
    assert "learned nothing" not in capsys.readouterr().out


@pytest.mark.slow
def test_rl_killed_at_a_random_moment_ends_like_an_undisturbed_run(runs, make_spec):
    """SIGKILL ends a real process, of which most of the time goes to sampling."""
    changes = {"kl": 0.1, "updates_per_step": 2, "clip": 0.2, "scale": "std"}
    runs.check_killed(make_spec(steps=6, **changes), random.Random(5).sample(range(2, 7), 1), [0.02])


@pytest.mark.slow
def test_rl_killed_ten_times_ends_like_an_undisturbed_run(runs, make_spec):
    """The moments reach from the first evaluation to the last update, at random times within sampling and updates."""
    draw = random.Random(7)
    moments = sorted(draw.sample(range(1, 46), 10))
    runs.check_killed(make_spec(steps=40, kl=0.05), moments, [draw.uniform(0, 0.06) for _ in moments])


def test_rl_samples_the_tasks_in_their_weights(runs, make_spec):
    """Three quarters of the questions are to spell, as far as forty words allow, and each is asked once per epoch."""
    data = {"count": practice("spelling_bee", weight=1.0), "spell": practice("simple_spelling", weight=3.0)}
    metrics = runs.metrics(
        runs.run(
            make_spec(
                data=data, steps=None, epochs=1.0, prompts_per_step=13, samples_per_prompt=2, max_tokens=2, held_out={}
            )
        )
    )
    assert (metrics["prompts"], metrics["steps"]) == (52, 4)  # 40 + 40 / 3, of which 53 fill 4 steps of 13


def test_rl_reward_that_is_not_a_number_ends_the_stage_with_its_place(runs, make_spec, monkeypatch):
    monkeypatch.setattr(Spelling, "grade", lambda self, example, text: float("nan"))
    with pytest.raises(StageError, match=r"rl, step 1, prompt 1, question \d+ of simple_spelling: .* with nan") as e:
        runs.run(make_spec(held_out={}))
    assert e.value.exit_code == 4


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("changes", [{"kl": 0.1}, {"kl": 0.1, "updates_per_step": 2}, {}], ids=str)
def test_rl_that_diverges_ends_the_stage_with_exit_code_4(runs, make_spec, changes):
    """At this learning rate the first update leaves finite weights whose logits are not."""
    spec = make_spec(optimizer=OptimizerConfig(lr_scale=1e30), held_out={}, steps=8, **changes)
    with pytest.raises(StageError, match=r"diverged: (.*\n)*.*lower the learning rate \(`rl\.lr_scale`\)") as e:
        runs.run(spec)
    assert e.value.exit_code == 4


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_rl_that_skips_all_of_its_few_steps_ends_with_exit_code_4(runs, upstream, make_spec):
    """The weights of the given model are finite, but its gradients are not."""
    folder = Path(upstream["sft"]) / "model"
    model = load_model(folder)
    model.set_parameters({name: 1e25 * x if x.ndim == 2 else x for name, x in model.named_parameters().items()})
    save_model(folder, model, load_tokenizer(folder))
    with pytest.raises(StageError, match=r"not finite in steps 1 to 2 \(all of the stage(.*\n)*.*`rl\.lr_scale`") as e:
        runs.run(make_spec(held_out={}, steps=2))
    assert e.value.exit_code == 4


def test_rl_starts_from_a_given_model(runs, upstream, make_spec):
    spec = make_spec(
        init_from=f"{upstream['sft']}/model", steps=1, optimizer=OptimizerConfig(lr_scale=1e-30), held_out={}
    )
    context = runs.run(spec, upstream={})
    before = load_model(context.folder.path.parent / "sft" / "out" / "model").named_parameters()
    for name, value in load_model(context.out / "model").named_parameters().items():
        assert np.allclose(np.array(value), np.array(before[name]), atol=1e-20), name
    assert (
        load_tokenizer(context.out / "model").vocab_size
        == load_tokenizer(context.folder.path.parent / "sft/out/model").vocab_size
    )
