"""Evaluates multiple choice by log-probability: the model chooses the option that it finds most likely per token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nanochat.evals.continuations import (
    Continuation,
    common_prefix_length,
    make_continuation,
    missing_examples,
    most_likely,
    score_continuations,
)
from nanochat.evals.metrics import Score
from nanochat.evals.task_result import ExampleRecord, TaskResult, summarize
from nanochat.model.dispatch import FastGPT
from nanochat.tasks.multiple_choice.base_models import ChoiceItem
from nanochat.tokenizer.bpe import Tokenizer


def evaluate_choices(
    model: FastGPT,
    tokenizer: Tokenizer,
    items: Sequence[ChoiceItem],
    *,
    task: str,
    chance: float,
    max_tokens_per_batch: int | None = None,
    on_scored: Callable[[int], None] | None = None,
) -> TaskResult:
    """Return accuracy and records of `items`, of which a guess gets the share `chance` right.

    The model's choice is the option with the largest mean log-probability per token, as in CORE; the first one wins a
    tie. A row longer than the model's context loses its first tokens. `max_tokens_per_batch`
    as in `score_continuations`; `on_scored` is called with the number of items scored so far.
    """
    longest = model.config.sequence_len
    groups = [option_continuations(tokenizer, item, max_tokens=longest) for item in items]
    scores = score_continuations(model, groups, max_tokens_per_batch=max_tokens_per_batch, on_scored=on_scored)
    records = tuple(
        _record(number, task, tokenizer, *parts) for number, parts in enumerate(zip(items, groups, scores, strict=True))
    )
    return summarize(records, chance=chance)


def option_continuations(tokenizer: Tokenizer, item: ChoiceItem, *, max_tokens: int | None) -> list[Continuation]:
    """Return one row for each option: BOS, then context and option tokenized as one text, scored from the option on.

    The option begins after the tokens that the context alone and the context with the option have in common. A token
    that spans the boundary belongs to the option.
    """
    context = [tokenizer.bos_id, *tokenizer.encode(item.context)]
    rows = [[tokenizer.bos_id, *tokenizer.encode(item.context + option)] for option in item.options]
    return [make_continuation(row, common_prefix_length(context, row), max_tokens=max_tokens) for row in rows]


def _record(
    number: int,
    task: str,
    tokenizer: Tokenizer,
    item: ChoiceItem,
    rows: Sequence[Continuation],
    scores: Sequence[Score],
) -> ExampleRecord:
    chosen = most_likely(scores)
    return ExampleRecord(
        index=number,
        task=task,
        prompt=item.context,
        output=item.options[chosen],
        expected=item.options[item.gold],
        correct=chosen == item.gold,
        options=item.options,
        logprobs=tuple(score.logprob for score in scores),
        is_truncated=any(row.lost for row in rows),
        missing_examples=missing_examples(tokenizer, rows, item.example_starts, asked=item.num_fewshot),
    )
