"""Multiple choice on the real sets: an oracle scores 1, its opposite 0, a random model guesses, ties go to the first.

    NANOCHAT_TEST_DATA=../shared/data pytest -m slow tests/evals/test_real_suites.py

The folder is that of `tests/tasks/test_real_data.py`.
"""

from __future__ import annotations

import os
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from nanochat.data.sources import SourceSpec
from nanochat.evals.chat_tasks import evaluate_categorical
from nanochat.evals.choice_tasks import evaluate_choices, option_continuations
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.tasks.base import gold_text
from nanochat.tasks.base_multiple_choice import build_choice_items
from nanochat.tasks.build import build_task
from nanochat.tasks.table import TASKS
from nanochat.tokenizer import bpe
from nanochat.tokenizer.chat_format import render_for_completion

FOLDER = os.environ.get("NANOCHAT_TEST_DATA")
REAL = Path(FOLDER).absolute() / "eval" if FOLDER else Path("nowhere")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(FOLDER is None, reason="NANOCHAT_TEST_DATA names no folder")]
BASE_SUITES = ["hellaswag", "mmlu", "arc_easy", "arc_challenge"]
CHAT_SUITES = ["mmlu", "arc_easy", "arc_challenge"]


def source(name: str) -> SourceSpec:
    return SourceSpec(name=name, path=(str(REAL / name),))


def base_items(name: str, count: int):
    return build_choice_items(name, source(name), base=Path("unused"), max_problems=count)


def chat_task(name: str, count: int):
    return build_task(name, source(name), "test", max_examples=count, seed=0, base=Path("unused"), choose="shuffled")


@pytest.fixture(scope="module")
def tokenizer():
    items = [item for name in BASE_SUITES for item in base_items(name, 200)]
    texts = [item.context + option for item in items for option in item.options]
    return bpe.train(texts, vocab_size=1024, max_chars=10**6, max_document_chars=10**4)


class Guessing:
    """Every logit and log-probability is drawn anew."""

    def __init__(self, vocab_size: int, sequence_len: int) -> None:
        self.vocab_size = vocab_size
        self.config = GPTConfig(
            sequence_len=sequence_len, vocab_size=vocab_size, n_layer=1, n_head=1, n_kv_head=1, n_embd=8
        )
        self.generator = np.random.default_rng(0)

    def hidden(self, idx: mx.array, cache=None) -> mx.array:
        return mx.zeros((*idx.shape, 1))

    def hidden_ragged(self, layout) -> mx.array:
        return mx.zeros((layout.tokens.size, 1))

    def logits(self, hidden: mx.array) -> mx.array:
        return mx.array(self.generator.normal(size=(*hidden.shape[:-1], self.vocab_size)).astype(np.float32))

    def judge(self, hidden: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
        drawn = self.generator.normal(size=targets.shape).astype(np.float32)
        return mx.array(drawn - 10), mx.zeros(targets.shape, dtype=mx.bool_)


@pytest.fixture(scope="module")
def even(tokenizer) -> GPT:
    """All weights 0: every token is as likely as any other. Half the quickstart's context, so that prompts are cut."""
    config = GPTConfig(sequence_len=128, vocab_size=tokenizer.vocab_size, n_layer=1, n_head=1, n_kv_head=1, n_embd=32)
    model = GPT(config)
    model.set_parameters({key: mx.zeros_like(value) for key, value in model.named_parameters().items()})
    return model


class Knowing:
    """Likes, or with `likes` false dislikes, every token of `rows`: logarithm 0 against -9.

    A hidden state is the number of a token in the forward.
    """

    def __init__(self, rows, *, likes: bool, vocab_size: int, sequence_len: int) -> None:
        self.config = GPTConfig(
            sequence_len=sequence_len, vocab_size=vocab_size, n_layer=1, n_head=1, n_kv_head=1, n_embd=8
        )
        self.rows = {tuple(row[:-1]): tuple(row) for row in rows}
        self.likes = likes

    def hidden_ragged(self, layout) -> mx.array:
        """Note what each token's row reads up to it, and which of `rows` its whole row is, but for the last token."""
        self.read: list[tuple[int, ...]] = []
        for token, before in zip(layout.tokens[0].tolist(), layout.previous.tolist(), strict=True):
            self.read.append((*(self.read[before] if before >= 0 else ()), token))
        self.whole = [
            self.rows.get(self.read[extent.own.stop - 1]) for extent in layout.extents for _ in range(extent.length)
        ]
        return mx.arange(len(self.read))[:, None]

    def judge(self, hidden, targets) -> tuple[mx.array, mx.array]:
        pairs = zip(hidden[:, 0].tolist(), targets.tolist(), strict=True)
        is_known = [
            (whole := self.whole[number]) is not None and whole[len(self.read[number])] == target
            for number, target in pairs
        ]
        logprobs = [0.0 if known == self.likes else -9.0 for known in is_known]
        return mx.array(logprobs), mx.array(is_known)


@pytest.mark.parametrize("name", BASE_SUITES)
@pytest.mark.parametrize(("likes", "accuracy"), [(True, 1.0), (False, 0.0)])
def test_a_base_oracle_scores_1_and_its_opposite_0(name, likes, accuracy, tokenizer):
    """Centred, 1 and -chance / (1 - chance)."""
    items = base_items(name, 60)
    spans = [option_continuations(tokenizer, item, max_tokens=256)[item.gold] for item in items]
    gold = [span.tokens for span in spans]
    model = Knowing(gold, likes=likes, vocab_size=tokenizer.vocab_size, sequence_len=256)
    score = evaluate_choices(model, tokenizer, items, task=name).score
    assert (score.accuracy, score.n) == (accuracy, 60)
    assert score.centred == pytest.approx((accuracy - TASKS[name].chance) / (1 - TASKS[name].chance))


class KnowingLetters:
    """Knows a next token for some rows; a hidden state is that token's number."""

    def __init__(self, answers: dict[tuple[int, ...], int], vocab_size: int) -> None:
        self.answers, self.vocab_size = answers, vocab_size
        self.config = GPTConfig(sequence_len=1024, vocab_size=vocab_size, n_layer=1, n_head=1, n_kv_head=1, n_embd=8)

    def hidden(self, idx: mx.array, cache=None) -> mx.array:
        rows = [[self.answers.get(tuple(row[: i + 1]), 0) for i in range(len(row))] for row in idx.tolist()]
        return mx.array(rows, dtype=mx.float32)[..., None]

    def logits(self, hidden: mx.array) -> mx.array:
        return (mx.arange(self.vocab_size) == hidden).astype(mx.float32)


@pytest.mark.parametrize("name", CHAT_SUITES)
@pytest.mark.parametrize(("shift", "accuracy"), [(0, 1.0), (1, 0.0)])
def test_a_chat_oracle_scores_1_and_its_opposite_0(name, shift, accuracy, tokenizer):
    """The opposite names the letter after the right one."""
    task, answers = chat_task(name, 60), {}
    for example in task:
        prompt = render_for_completion(tokenizer, example.conversation, max_tokens=1024)
        letters = example.letters
        letter = letters[(letters.index(gold_text(example)) + shift) % len(letters)]
        answers[tuple(prompt)] = tokenizer.encode(letter)[0]
    score = evaluate_categorical(KnowingLetters(answers, tokenizer.vocab_size), tokenizer, task).score
    assert (score.accuracy, score.n) == (accuracy, 60)


@pytest.mark.parametrize("name", BASE_SUITES)
def test_a_random_base_model_guesses(name, tokenizer):
    """Within two standard errors of chance, and centred about 0."""
    model = Guessing(tokenizer.vocab_size, 256)
    score = evaluate_choices(model, tokenizer, base_items(name, 800), task=name).score
    assert abs(score.accuracy - TASKS[name].chance) <= 2 * score.stderr
    assert abs(score.centred) <= 2 * score.stderr / (1 - TASKS[name].chance) + 1e-9


@pytest.mark.parametrize("name", CHAT_SUITES)
def test_a_random_chat_model_guesses(name, tokenizer):
    """Within two standard errors of chance."""
    score = evaluate_categorical(Guessing(tokenizer.vocab_size, 1024), tokenizer, chat_task(name, 800)).score
    assert abs(score.accuracy - TASKS[name].chance) <= 2 * score.stderr


@pytest.mark.parametrize("name", BASE_SUITES)
def test_ties_go_to_the_first_option_and_cut_prompts_say_so(name, even, tokenizer):
    """Whatever the options' lengths; the newest tokens of a prompt are kept."""
    items = base_items(name, 200)
    records = evaluate_choices(even, tokenizer, items, task=name).records
    assert all(record.output == record.options[0] for record in records)
    for item, record in zip(items, records, strict=True):
        rows = [[tokenizer.bos_id, *tokenizer.encode(item.context + option)] for option in item.options]
        spans = option_continuations(tokenizer, item, max_tokens=128)
        assert record.is_truncated == any(len(row) > 128 for row in rows)
        assert [list(span.tokens) for span in spans] == [row[-128:] for row in rows]


@pytest.mark.parametrize("name", CHAT_SUITES)
def test_ties_go_to_the_first_letter(name, even, tokenizer):
    """The first that the data name."""
    records = evaluate_categorical(even, tokenizer, chat_task(name, 200)).records
    assert all(record.output == record.options[0] for record in records)
