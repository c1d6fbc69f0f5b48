"""Base models choose the option with the largest mean log-probability per token."""

from __future__ import annotations

import numpy as np
import pytest

from nanochat.evals.choice_tasks import evaluate_choices, option_continuations
from nanochat.tasks.multiple_choice.base_models import ChoiceItem


def quiz(size: int) -> list[ChoiceItem]:
    """The gold option, at a place that varies, consists of z; the others consist of q. Lengths differ."""
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
def test_choices_score_1_for_an_oracle_and_0_for_its_opposite(tokenizer, table_model, letter, accuracy, centred):
    model = table_model(fond_of(tokenizer, letter, 320), vocab_size=320)
    result = evaluate_choices(model, tokenizer, quiz(12), task="hellaswag", chance=0.25)
    assert (result.score.accuracy, result.score.n) == (accuracy, 12)
    assert result.score.centred == pytest.approx(centred)
    assert [record.correct for record in result.records] == [bool(accuracy)] * 12


def test_choices_with_equal_scores_give_the_first_option(tokenizer, table_model):
    """A uniform model gives every token, and so every mean, the same log-probability."""
    model = table_model(lambda tokens: np.zeros((len(tokens), 320)), vocab_size=320)
    result = evaluate_choices(model, tokenizer, quiz(8), task="hellaswag", chance=0.25)
    assert {record.output for record in result.records} == {item.options[0] for item in quiz(8)}
    assert result.score.accuracy == 0.25


def test_choices_in_batches_equal_those_of_single_rows(random_model, tokenizer, reference_score):
    """Log-probabilities agree within 1e-4 with each row's full logits in float64."""
    items = quiz(20)
    together = evaluate_choices(random_model, tokenizer, items, task="hellaswag", chance=0.25)
    for item, record in zip(items, together.records, strict=True):
        rows = option_continuations(tokenizer, item, max_tokens=None)
        logprobs = [reference_score(random_model, row)[0] for row in rows]
        assert record.logprobs == pytest.approx(logprobs, abs=1e-4)
        means = [logprob / row.length for logprob, row in zip(logprobs, rows, strict=True)]
        assert record.output == item.options[int(np.argmax(means))]


def test_choices_with_a_long_context_lose_its_first_tokens(random_model, tokenizer):
    """The whole option is scored, after as much of the context's end as fits. The record says so."""
    length = random_model.config.sequence_len
    item = ChoiceItem("q" * (2 * length), ("z" * 5, "x" * 7), 0)
    rows = option_continuations(tokenizer, item, max_tokens=length)
    assert [(len(row.tokens), row.length) for row in rows] == [(length, 5), (length, 7)]
    assert tokenizer.decode(rows[0].tokens) == "q" * (length - 5) + "z" * 5
    assert evaluate_choices(random_model, tokenizer, [item], task="hellaswag", chance=0.25).records[0].is_truncated


def test_option_includes_the_token_that_spans_the_boundary(tokenizer):
    """`the` is one token. If context and option meet inside it, it belongs to the option."""
    whole = tokenizer.encode("x the")
    assert len(whole) < len(tokenizer.encode("x t")) + 2
    (row,) = option_continuations(tokenizer, ChoiceItem("x t", ("he",), 0), max_tokens=None)
    assert tokenizer.decode(row.tokens) == "<|bos|>x the"
    assert "the" in tokenizer.decode(row.tokens[row.start :])


def test_records_count_the_solved_examples_that_the_model_did_not_read_whole(random_model, tokenizer):
    """The problem of 11 letters and its option of 3 leave room for so many whole examples of 20 letters.

    Of the five that are asked for the data has four. The record of the last problem, which asks for none, has no count.
    """
    room = (random_model.config.sequence_len - 14) // 20
    example, question = "q" * 18 + "\n\n", "z" * 11
    starts = tuple(range(0, 80, 20))
    items = [
        ChoiceItem(question, ("xxx", "xxx"), 0, num_fewshot=5),
        ChoiceItem(example * 4 + question, ("xxx", "xxx"), 0, num_fewshot=5, example_starts=starts),
        ChoiceItem(example * 4 + "z" + question, ("xxx", "x"), 0, num_fewshot=4, example_starts=starts),
        ChoiceItem(question, ("xxx",), 0),
    ]
    result = evaluate_choices(random_model, tokenizer, items, task="hellaswag", chance=0.25)
    assert [record.missing_examples for record in result.records] == [5, 5 - min(4, room), 4 - min(4, room), None]
