"""Chat tasks are graded by letters or by generated text, whatever the batch size."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np
import pytest

from nanochat.errors import StageError
from nanochat.evals.chat_tasks import evaluate_categorical, evaluate_generative
from nanochat.evals.task_result import Cuts, ExampleRecord, count_cuts
from nanochat.inference.engine import Engine
from nanochat.inference.sampling import Sampling
from nanochat.tasks.task import Example, single_turn
from nanochat.tokenizer.chat_format import render_for_completion


@dataclass(frozen=True)
class Quiz:
    """A task with the questions `0?`, `1?`, ..., whose right letters vary."""

    kind: str
    size: int
    letters: tuple[str, ...] = ("A", "B", "C", "D")
    padding: int = 0
    name: str = "mmlu"

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        question = "so " * (self.padding * (index % 5)) + f"{index}?"
        letters = self.letters if self.kind == "categorical" else None
        return Example(single_turn(question, self.letters[index * 7 % len(self.letters)]), letters=letters)

    def grade(self, example: Example, completion: str) -> bool:
        return completion.strip() == example.conversation.messages[-1].text()


def answers_for(task: Quiz, tokenizer, shift: int) -> dict[tuple[int, ...], int]:
    answers = {}
    for i in range(len(task)):
        prompt = render_for_completion(tokenizer, task[i].conversation)
        letter = task.letters[(i * 7 + shift) % len(task.letters)]
        answers[tuple(prompt)] = tokenizer.encode(letter)[0]
    return answers


@pytest.mark.parametrize(("shift", "accuracy", "centred"), [(0, 1.0, 1.0), (1, 0.0, -1 / 3)])
def test_categorical_scores_1_for_an_oracle_and_0_for_its_opposite(oracle, tokenizer, shift, accuracy, centred):
    """The letters are digits here, and prompts of several lengths share a batch."""
    task = Quiz("categorical", 20, letters=("1", "2", "3"), padding=3)
    result = evaluate_categorical(oracle(answers_for(task, tokenizer, shift), tokenizer.vocab_size), tokenizer, task)
    assert (result.score.accuracy, result.score.n) == (accuracy, 20)
    assert result.score.centred == pytest.approx(centred)
    assert result.records[3].prompt.endswith("3?<|user_end|><|assistant_start|>")
    assert result.records[3].output == task.letters[(21 + shift) % 3]
    assert result.records[3].expected == task.letters[21 % 3]


def test_categorical_compares_only_the_letters_of_the_problem(oracle, tokenizer):
    """Z is the most likely token but no letter of the problem. B and C tie, and the first one wins."""

    class Fixed(oracle):
        def logits(self, hidden: mx.array) -> mx.array:
            values = np.zeros(self.vocab_size, dtype=np.float32)
            for token, value in (("Z", 9.0), ("A", 1.0), ("B", 2.0), ("C", 2.0)):
                values[tokenizer.encode(token)[0]] = value
            return mx.array(np.broadcast_to(values, (*hidden.shape[:-1], self.vocab_size)))

    result = evaluate_categorical(Fixed({}, tokenizer.vocab_size), tokenizer, Quiz("categorical", 4))
    assert {record.output for record in result.records} == {"B"}
    assert result.score.accuracy == 0.25


def test_categorical_in_batches_equals_single_prompts(random_model, tokenizer):
    """Log-probabilities agree within 1e-4 with each row's full logits in float64."""
    task = Quiz("categorical", 30, letters=("D", "A", "C", "B"), padding=3)
    together = evaluate_categorical(random_model, tokenizer, task)
    ids = [tokenizer.encode(letter)[0] for letter in task.letters]
    for i, record in enumerate(together.records):
        prompt = render_for_completion(tokenizer, task[i].conversation)
        logits = np.array(random_model(mx.array([prompt]))[0, -1], dtype=np.float64)
        expected = logits[ids] - np.log(np.exp(logits).sum())
        assert record.logprobs == pytest.approx(expected.tolist(), abs=1e-4)
        assert record.output == task.letters[int(logits[ids].argmax())]


def test_prompts_longer_than_the_context_lose_their_first_tokens_and_are_marked(random_model, tokenizer):
    task = Quiz("categorical", 5, padding=400)
    result = evaluate_categorical(random_model, tokenizer, task)
    assert [record.is_truncated for record in result.records] == [False, True, True, True, True]
    assert all(record.prompt.endswith("?<|user_end|><|assistant_start|>") for record in result.records)
    generated = evaluate_generative(Engine(random_model, tokenizer), task, max_tokens=8)
    assert [record.is_truncated for record in generated.records] == [False, True, True, True, True]
    assert {record.hit_limit for record in result.records} == {None}


@pytest.mark.parametrize("max_tokens", [9, 500])
def test_answers_that_reach_their_limit_are_marked(tokenizer, max_tokens):
    """The limit is `max_tokens`, or what a prompt leaves of the context of 256 tokens."""
    task = Quiz("generative", 3)
    limit = min(max_tokens, 256 - len(render_for_completion(tokenizer, task[0].conversation)))
    engine = Recited(tokenizer, "z" * limit, "z" * (limit - 1), "")
    result = evaluate_generative(engine, task, max_tokens=max_tokens)
    assert [record.hit_limit for record in result.records] == [True, False, False]


def test_cuts_are_counted_by_problem_and_by_answer():
    """Two samples of a problem with a cut prompt are one cut prompt, and may be two cut answers."""
    record = ExampleRecord(0, "t", "p", "o", "e", correct=True)
    cut = replace(record, index=1, is_truncated=True, hit_limit=True)
    records = [replace(record, hit_limit=False), replace(record, hit_limit=True, sample=1), cut, replace(cut, sample=1)]
    assert count_cuts(records) == Cuts(problems=2, answers=4, prompts_cut=1, examples_cut=None, answers_cut=3)
    choices = [replace(record, index=i, missing_examples=missing) for i, missing in enumerate((0, 2, 1))]
    assert count_cuts(choices) == Cuts(problems=3, answers=0, prompts_cut=0, examples_cut=2, answers_cut=None)
    same_number = [replace(record, task="u"), record]
    assert count_cuts(same_number).problems == 2, "tasks of CORE number their problems alike"


def test_categorical_refuses_letters_that_are_not_single_tokens(random_model, tokenizer):
    class Odd(Quiz):
        def __getitem__(self, index: int) -> Example:
            return Example(single_turn("x?", "A"), letters=("A", "the Bee"))

    with pytest.raises(StageError, match=r"letter|token"):
        evaluate_categorical(random_model, tokenizer, Odd("categorical", 2))


class Recited:
    """An engine that returns prepared texts."""

    def __init__(self, tokenizer, *texts: str) -> None:
        self.tokenizer = tokenizer
        self.texts = itertools.cycle(texts)
        self.model = type("Model", (), {"config": type("Config", (), {"sequence_len": 256})})

    def complete(self, prompts, **settings) -> list[list[int]]:
        self.settings = settings
        return [self.tokenizer.encode(next(self.texts)) for _ in prompts]


def test_generative_estimates_pass_at_k_from_several_samples(tokenizer):
    """The right answers are A, D, C. Of the samples A, A, x, y, two are right for problem 0 and none for the others."""
    engine = Recited(tokenizer, "A", " A\n", "x", "y")
    result = evaluate_generative(engine, Quiz("generative", 3), num_samples=4, sampling=Sampling(0.7, 9), seed=5)
    assert result.score.accuracy == pytest.approx((2 / 4 + 0 + 0) / 3)
    assert result.score.n == 3
    # pass@2 of 2 in 4: 1 - C(2,2)/C(4,2) = 5/6.
    assert dict(result.pass_at) == pytest.approx({1: 0.5 / 3, 2: 5 / 6 / 3, 4: 1 / 3})
    assert [(record.index, record.sample) for record in result.records[:5]] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]
    assert (engine.settings["sampling"], engine.settings["seed"]) == (Sampling(0.7, 9), 5)


@pytest.mark.parametrize(("shift", "accuracy"), [(0, 1.0), (1, 0.0)])
def test_generative_scores_1_for_an_oracle_and_0_for_its_opposite(tokenizer, shift, accuracy):
    """The oracle answers every prompt with one letter."""
    task = Quiz("generative", 12, padding=3, name="gsm8k")
    answers = answers_for(task, tokenizer, shift)

    class Oracle(Recited):
        def complete(self, prompts, **settings):
            return [[answers[tuple(prompt)]] for prompt in prompts]

    result = evaluate_generative(Oracle(tokenizer), task, max_tokens=5)
    assert result.score.accuracy == accuracy
    assert result.score.centred == accuracy
    assert [record.output for record in result.records] == [task.letters[(i * 7 + shift) % 4] for i in range(12)]
