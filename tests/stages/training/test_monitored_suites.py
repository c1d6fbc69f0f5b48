"""Suites that run while a stage trains: they measure what the evaluation stages measure, and change no bit."""

from __future__ import annotations

import itertools
import json

import pytest

from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import InterruptedRun
from nanochat.plan.specs.evaluation import BaseEvalSpec, ChatEvalSpec
from nanochat.plan.specs.inputs import SftItem
from nanochat.plan.specs.suites import BpbSuiteSpec, ChatSuiteSpec, ChoiceSuiteSpec
from nanochat.stages import base_eval, chat_eval, pretrain, sft
from nanochat.storage.layout import list_checkpoints

BITS = ("out/model/model.safetensors", "out/optimizer.safetensors")
WORDS = SourceSpec(name="words", builtin="spelling")


@pytest.fixture
def suites(documents, tmp_path):
    """Bits per byte of documents, and a multiple-choice task of four rows."""
    rows = [{"ctx": f"line {i} of", "endings": ["a", "b", "document", "x"], "label": i % 4} for i in range(4)]
    path = tmp_path / "validation.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    choices = SourceSpec(name="choices", path=(str(path),))
    return {
        "choices": ChoiceSuiteSpec(task="hellaswag", source=choices, split=None, max_problems=None, num_fewshot=0),
        "text": BpbSuiteSpec(source=documents, split="validation", tokens=100),
    }


@pytest.fixture
def chat_suites():
    """Spelling with answers that are drawn at random."""
    fields = {"split": "test", "max_problems": 2, "num_samples": 2, "max_tokens": 3, "temperature": 1.0, "top_k": 50}
    return {"spell": ChatSuiteSpec(task="simple_spelling", source=WORDS, **fields)}


@pytest.fixture
def sft_spec(make_sft_spec):
    item = SftItem(name="w", task="simple_spelling", source=WORDS, split="train", max_examples=24, repeat=1)
    return make_sft_spec(item, steps=4)


def scores(runs, context):
    """Return the scores by step and name."""
    return [
        {"step": line["step"], **line["metrics"]}
        for line in runs.series(context)
        if any(name.startswith("eval/") for name in line["metrics"])
    ]


def bits(context):
    return [(context.folder.path / name).read_bytes() for name in BITS]


def without_scores(runs, context):
    return [line for line in runs.series(context) if not any(name.startswith("eval/") for name in line["metrics"])]


def test_pretrain_with_suites_has_the_same_bits_and_the_scores_of_base_eval(
    make_runs, make_context, upstream, make_pretrain_spec, suites
):
    """Suites run after every second step and after the last. base_eval measures the checkpoint of each of these."""
    runs = make_runs(pretrain, upstream=upstream, micro_batch_size=3)
    spec = make_pretrain_spec(steps=5)
    plain = runs.run(spec, "plain")
    context = runs.run(spec, "evaluated", suites=suites, suites_every_steps=2, checkpoint_keep=1000)
    assert bits(context) == bits(plain)
    assert without_scores(runs, context) == runs.series(plain)

    logged = scores(runs, context)
    assert [line["step"] for line in logged] == [2, 4, 5]
    for line in logged:
        folder = list_checkpoints(context.folder.checkpoints)[line["step"]]
        evaluation = BaseEvalSpec(suites=suites, samples=(), sample_tokens=1, init_from=str(folder), seed=3)
        stage = make_context(evaluation, name=f"eval{line['step']}")
        metrics = base_eval.run(stage.job, stage).metrics
        expected = {f"eval/{name}": metrics[name] for name in ("choices", "choices.stderr", "text")}
        assert {name: value for name, value in line.items() if name != "step"} == expected


def test_sft_with_suites_has_the_same_bits_and_the_scores_of_chat_eval(
    make_runs, make_context, pretrained, sft_spec, suites, chat_suites
):
    runs = make_runs(sft, upstream=pretrained, micro_batch_size=4)
    plain = runs.run(sft_spec, "plain")
    suites = {"text": suites["text"]}
    context = runs.run(sft_spec, "evaluated", suites=suites, chat_suites=chat_suites, suites_every_steps=3)
    assert bits(context) == bits(plain)
    assert without_scores(runs, context) == runs.series(plain)
    logged = scores(runs, context)
    assert [line["step"] for line in logged] == [3, 4]
    evaluation = ChatEvalSpec(suites=chat_suites, init_from=str(context.folder.model), seed=sft_spec.seed)
    stage = make_context(evaluation, name="eval")
    metrics = chat_eval.run(stage.job, stage).metrics
    assert logged[-1]["eval/spell"] == metrics["spell"]
    assert logged[-1]["eval/spell.pass_at_2"] == metrics["spell.pass_at_2"]


def test_training_stopped_inside_a_suite_repeats_its_evaluation_and_ends_the_same(
    make_runs, upstream, make_pretrain_spec, suites
):
    """A step asks once whether to stop, and each batch of a suite once. The run stops at the 4th to the 7th question.

    The series have no line twice, and the time of suites is counted once for each evaluation.
    """
    runs = make_runs(pretrain, upstream=upstream, micro_batch_size=3, suites=suites, suites_every_steps=2)
    runs.options |= {"sample_every_steps": 3, "prompts": ("line",)}
    spec = make_pretrain_spec(steps=3)
    undisturbed = runs.run(spec, "undisturbed")
    where = set()
    for call in range(2, 8):
        calls = itertools.count(1)
        with pytest.raises(InterruptedRun) as stop:
            runs.run(spec, f"stopped{call}", should_stop=lambda calls=calls, call=call: next(calls) == call)
        where.add(str(stop.value).split(",")[0])
        stopped = runs.run(spec, f"stopped{call}")
        assert runs.contents(stopped) == runs.contents(undisturbed)
        assert [line["step"] for line in scores(runs, stopped)] == [2, 3]
        seconds = [line["metrics"].get("train/suite_seconds") for line in runs.series(stopped, "timings.jsonl")]
        total = json.loads(stopped.folder.result_timings.read_text())["suite_seconds"]
        assert total == pytest.approx(sum(value for value in seconds if value is not None))
    assert {"stopped while evaluating `choices` at step 2", "stopped while evaluating `text` at step 2"} <= where


@pytest.mark.slow
def test_training_killed_inside_a_suite_ends_with_the_same_series(make_runs, pretrained, sft_spec, chat_suites):
    """SIGKILL comes right after a step is logged that is evaluated next, and after an evaluation."""
    runs = make_runs(sft, upstream=pretrained, micro_batch_size=4, chat_suites=chat_suites, suites_every_steps=2)
    runs.options |= {"sample_every_steps": 3, "prompts": ("line",)}
    runs.check_killed(sft_spec, (2, 3))


def test_training_shows_the_latest_scores(make_runs, upstream, make_pretrain_spec, suites, capsys):
    runs = make_runs(pretrain, upstream=upstream, micro_batch_size=3, suites=suites, suites_every_steps=2)
    context = runs.run(make_pretrain_spec(steps=3), should_stop=lambda: False)
    line = scores(runs, context)[-1]
    assert f"step 3: choices {line['eval/choices']:.3g}, text {line['eval/text']:.3g}\n" in capsys.readouterr().out
