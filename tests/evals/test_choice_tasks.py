"""Options are compared by their mean log-probability; an oracle scores 1, its opposite 0, a coin chance."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from nanochat.evals.choice_tasks import evaluate_choices, option_continuations
from nanochat.tasks.base_multiple_choice import ChoiceItem


def quiz(size: int) -> list[ChoiceItem]:
    """The gold option, at a place that goes round, is all z; the others are all q. Lengths differ."""
    items = []
    for number in range(size):
        gold = number * 3 % 4
        options = tuple(
            (" zzz" if i == gold else " qqqqq") + ("z" if i == gold else "q") * (number % 4) for i in range(4)
        )
        items.append(ChoiceItem("the cat sat " * (1 + number % 3) + f"{number}:", options, gold))
    return items


def fond_of(tokenizer, letter: str, vocab_size: int):
    token = tokenizer.encode(letter)[0]
    return lambda tokens: np.where(np.arange(vocab_size) == token, 5.0, 0.0)[None].repeat(len(tokens), axis=0)


@pytest.mark.parametrize(("letter", "accuracy", "centred"), [("z", 1.0, 1.0), ("q", 0.0, -1 / 3)])
def test_an_oracle_scores_1_and_its_opposite_0(tokenizer, table_model, letter, accuracy, centred):
    model = table_model(fond_of(tokenizer, letter, 320), vocab_size=320)
    result = evaluate_choices(model, tokenizer, quiz(12), task="hellaswag")
    assert (result.score.accuracy, result.score.n) == (accuracy, 12)
    assert result.score.centred == pytest.approx(centred)
    assert [record.correct for record in result.records] == [bool(accuracy)] * 12


def test_equal_options_fall_to_the_first(tokenizer, table_model):
    """A uniform model gives every token the same: the mean is equal whatever the length, and the first wins."""
    model = table_model(lambda tokens: np.zeros((len(tokens), 320)), vocab_size=320)
    result = evaluate_choices(model, tokenizer, quiz(8), task="hellaswag")
    assert {record.output for record in result.records} == {item.options[0] for item in quiz(8)}
    assert result.score.accuracy == 0.25


def test_length_does_not_decide(tokenizer, table_model):
    """The mean of a token's log-probability, not the sum: a long likely option beats a short unlikely one."""
    model = table_model(fond_of(tokenizer, "z", 320), vocab_size=320)
    item = ChoiceItem("x:", ("q", "z" * 40), 1)
    (record,) = evaluate_choices(model, tokenizer, [item], task="hellaswag").records
    assert record.correct
    assert record.logprobs[1] < record.logprobs[0]


def test_batched_options_equal_one_by_one(random_model, tokenizer):
    """Verdicts equal, log-probabilities within 1e-4 of each row's whole logits in float64."""
    items = quiz(20)
    together = evaluate_choices(random_model, tokenizer, items, task="hellaswag")
    for item, record in zip(items, together.records, strict=True):
        means = []
        for span, logprob in zip(option_continuations(tokenizer, item, max_tokens=None), record.logprobs, strict=True):
            logits = np.array(random_model(mx.array([list(span.tokens)]))[0], dtype=np.float64)
            normed = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
            expected = sum(normed[j - 1, span.tokens[j]] for j in range(span.start, span.end))
            assert logprob == pytest.approx(expected, abs=1e-4)
            means.append(expected / (span.end - span.start))
        assert record.output == item.options[int(np.argmax(means))]


def test_a_random_model_guesses(random_model, tokenizer):
    """400 problems whose gold goes round over options of equal form: within two standard errors of chance."""
    generator = np.random.default_rng(3)
    items = [
        ChoiceItem("the cat sat", tuple(f" {a}{b}" for a, b in generator.integers(0, 10, size=(4, 2))), number % 4)
        for number in range(400)
    ]
    score = evaluate_choices(random_model, tokenizer, items, task="hellaswag").score
    assert abs(score.accuracy - 0.25) <= 2 * score.stderr


def test_long_contexts_lose_tokens_on_the_left_and_say_so(random_model, tokenizer):
    """The option is scored whole, after as much of the context's end as fits."""
    length = random_model.config.sequence_len
    item = ChoiceItem("q" * (2 * length), ("z" * 5, "x" * 7), 0)
    spans = option_continuations(tokenizer, item, max_tokens=length)
    assert [len(span.tokens) for span in spans] == [length, length]
    assert [span.end - span.start for span in spans] == [5, 7]
    assert tokenizer.decode(spans[0].tokens) == "q" * (length - 5) + "z" * 5
    assert evaluate_choices(random_model, tokenizer, [item], task="hellaswag").records[0].is_truncated


def test_a_token_over_the_edge_is_scored_whole(tokenizer):
    """`the` is one piece: where context and option meet inside it, it belongs to the option."""
    whole = tokenizer.encode("x the")
    assert len(whole) < len(tokenizer.encode("x t")) + 2
    (span,) = option_continuations(tokenizer, ChoiceItem("x t", ("he",), 0), max_tokens=None)
    assert tokenizer.decode(span.tokens) == "<|bos|>x the"
    assert "the" in tokenizer.decode(span.tokens[span.start :])
