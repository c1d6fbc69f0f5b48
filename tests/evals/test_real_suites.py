"""Multiple choice on the real sets: scores of an oracle, its opposite, a random model, and a uniform model.

    NANOCHAT_TEST_DATA=../shared/data pytest -m slow tests/evals/test_real_suites.py

The folder is that of `tests/tasks/test_real_data.py`.
"""

from __future__ import annotations

import os
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from nanochat.data.sources.source_spec import SourceSpec
from nanochat.evals.chat_tasks import evaluate_categorical
from nanochat.evals.choice_tasks import evaluate_choices, option_continuations
from nanochat.model.config import GPTConfig
from nanochat.model.dispatch import FastGPT
from nanochat.tasks.build import build_task
from nanochat.tasks.multiple_choice.base_models import build_choice_items
from nanochat.tasks.table import TASKS
from nanochat.tasks.task import gold_text
from nanochat.tokenizer import bpe
from nanochat.tokenizer.chat_format import fit_for_completion

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


def guessing(table_model, tokenizer, sequence_len: int):
    """Return a model that draws all logits at random."""
    generator, vocab_size = np.random.default_rng(0), tokenizer.vocab_size
    return table_model(
        lambda tokens: generator.normal(size=(len(tokens), vocab_size)),
        vocab_size=vocab_size,
        sequence_len=sequence_len,
    )


@pytest.fixture(scope="module")
def even(tokenizer) -> FastGPT:
    """A model of zeros, which finds all tokens equally likely. Its context is short, so that prompts are cut."""
    config = GPTConfig(sequence_len=128, vocab_size=tokenizer.vocab_size, n_layer=1, n_head=1, n_kv_head=1, n_embd=32)
    model = FastGPT(config)
    model.set_parameters({key: mx.zeros_like(value) for key, value in model.named_parameters().items()})
    return model


class Knowing:
    """A model that gives every token of `rows` log-probability 0 and others -9, or the reverse if `likes` is false.

    A hidden state is the number of a token in the forward pass.
    """

    def __init__(self, rows, *, likes: bool, vocab_size: int, sequence_len: int) -> None:
        self.config = GPTConfig(
            sequence_len=sequence_len, vocab_size=vocab_size, n_layer=1, n_head=1, n_kv_head=1, n_embd=8
        )
        self.rows = {tuple(row[:-1]): tuple(row) for row in rows}
        self.likes = likes

    def hidden_ragged(self, layout) -> mx.array:
        """Remember the tokens up to each token of the layout, and which of `rows` its row belongs to."""
        self.read: list[tuple[int, ...]] = []
        for token, before in zip(layout.tokens[0].tolist(), layout.previous.tolist(), strict=True):
            self.read.append((*(self.read[before] if before >= 0 else ()), token))
        self.whole = [
            self.rows.get(self.read[extent.own.stop - 1]) for extent in layout.extents for _ in range(extent.length)
        ]
        return mx.arange(len(self.read))[:, None]

    def target_logprobs(self, hidden, targets) -> tuple[mx.array, mx.array]:
        pairs = zip(hidden[:, 0].tolist(), targets.tolist(), strict=True)
        is_known = [
            (whole := self.whole[number]) is not None and whole[len(self.read[number])] == target
            for number, target in pairs
        ]
        logprobs = [0.0 if known == self.likes else -9.0 for known in is_known]
        return mx.array(logprobs), mx.array(is_known)


@pytest.mark.parametrize("name", BASE_SUITES)
@pytest.mark.parametrize(("likes", "accuracy"), [(True, 1.0), (False, 0.0)])
def test_base_suite_scores_1_for_an_oracle_and_0_for_its_opposite(name, likes, accuracy, tokenizer):
    """The centred scores are 1 and -chance / (1 - chance)."""
    items = base_items(name, 60)
    rows = [option_continuations(tokenizer, item, max_tokens=256)[item.gold] for item in items]
    gold = [row.tokens for row in rows]
    model = Knowing(gold, likes=likes, vocab_size=tokenizer.vocab_size, sequence_len=256)
    score = evaluate_choices(model, tokenizer, items, task=name, chance=TASKS[name].chance).score
    assert (score.accuracy, score.n) == (accuracy, 60)
    assert score.centred == pytest.approx((accuracy - TASKS[name].chance) / (1 - TASKS[name].chance))


@pytest.mark.parametrize("name", CHAT_SUITES)
@pytest.mark.parametrize(("shift", "accuracy"), [(0, 1.0), (1, 0.0)])
def test_chat_suite_scores_1_for_an_oracle_and_0_for_its_opposite(oracle, name, shift, accuracy, tokenizer):
    """The opposite answers with the letter after the right one."""
    task, answers = chat_task(name, 60), {}
    for example in task:
        prompt = fit_for_completion(tokenizer, example.conversation, max_tokens=1024).ids
        letters = example.letters
        letter = letters[(letters.index(gold_text(example)) + shift) % len(letters)]
        answers[tuple(prompt)] = tokenizer.encode(letter)[0]
    score = evaluate_categorical(oracle(answers, tokenizer.vocab_size), tokenizer, task).score
    assert (score.accuracy, score.n) == (accuracy, 60)


@pytest.mark.parametrize("name", BASE_SUITES)
def test_base_suite_scores_chance_for_a_random_model(name, table_model, tokenizer):
    """The score is within two standard errors of chance, and the centred score within two of 0."""
    model = guessing(table_model, tokenizer, 256)
    score = evaluate_choices(model, tokenizer, base_items(name, 800), task=name, chance=TASKS[name].chance).score
    assert abs(score.accuracy - TASKS[name].chance) <= 2 * score.stderr
    assert abs(score.centred) <= 2 * score.stderr / (1 - TASKS[name].chance) + 1e-9


@pytest.mark.parametrize("name", CHAT_SUITES)
def test_chat_suite_scores_chance_for_a_random_model(name, table_model, tokenizer):
    """The score is within two standard errors of chance."""
    model = guessing(table_model, tokenizer, 1024)
    score = evaluate_categorical(model, tokenizer, chat_task(name, 800)).score
    assert abs(score.accuracy - TASKS[name].chance) <= 2 * score.stderr


@pytest.mark.parametrize("name", BASE_SUITES)
def test_base_suite_gives_the_first_option_of_a_tie_and_marks_cut_prompts(name, even, tokenizer):
    """The first option wins whatever the options' lengths, and the last tokens of a prompt are kept."""
    items = base_items(name, 200)
    records = evaluate_choices(even, tokenizer, items, task=name, chance=TASKS[name].chance).records
    assert all(record.output == record.options[0] for record in records)
    for item, record in zip(items, records, strict=True):
        rows = [[tokenizer.bos_id, *tokenizer.encode(item.context + option)] for option in item.options]
        cut = option_continuations(tokenizer, item, max_tokens=128)
        assert record.is_truncated == any(len(row) > 128 for row in rows)
        assert [list(row.tokens) for row in cut] == [row[-128:] for row in rows]


@pytest.mark.parametrize("name", CHAT_SUITES)
def test_chat_suite_gives_the_first_letter_of_a_tie(name, even, tokenizer):
    records = evaluate_categorical(even, tokenizer, chat_task(name, 200)).records
    assert all(record.output == record.options[0] for record in records)
