"""Evaluates the tasks of CORE, in the three forms of the DCLM bundle (Li et al. 2024, "DataComp-LM").

`multiple_choice` compares what follows the prompts' common beginning, and `schema` compares their common end.
`language_modeling` asks that every token of the continuation be the most likely one. Not here: how prompts are written
(`nanochat.tasks.core_bundle`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import assert_never

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
from nanochat.tasks.core_bundle import CoreKind, CorePrompts
from nanochat.tokenizer.bpe import Tokenizer


def find_continuations(kind: CoreKind, rows: Sequence[Sequence[int]], *, max_tokens: int | None) -> list[Continuation]:
    """Return the continuations to score, given the tokens (BOS first) of a problem's prompts.

    Rows longer than `max_tokens` lose their first tokens. `language_modeling` scores one row, the full prompt, from
    where it departs from the prompt without continuation.
    """
    match kind:
        case "multiple_choice":
            start = min(common_prefix_length(rows[0], row) for row in rows)
            return [make_continuation(row, start, max_tokens=max_tokens) for row in rows]
        case "schema":
            length = min(common_prefix_length(rows[0][::-1], row[::-1]) for row in rows)
            return [make_continuation(row, len(row) - length, max_tokens=max_tokens) for row in rows]
        case "language_modeling":
            context, full = rows
            return [make_continuation(full, common_prefix_length(context, full), max_tokens=max_tokens)]
        case _:
            assert_never(kind)


def evaluate_core_task(
    model: FastGPT,
    tokenizer: Tokenizer,
    problems: Sequence[CorePrompts],
    *,
    task: str,
    chance: float,
    max_tokens_per_batch: int | None = None,
    on_scored: Callable[[int], None] | None = None,
) -> TaskResult:
    """Return accuracy and records of one CORE task. `on_scored` gets the number of problems scored so far.

    `max_tokens_per_batch` as in `score_continuations`.
    """
    groups = []
    for problem in problems:
        rows = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in problem.prompts]
        groups.append(find_continuations(problem.kind, rows, max_tokens=model.config.sequence_len))
    scores = score_continuations(model, groups, max_tokens_per_batch=max_tokens_per_batch, on_scored=on_scored)
    records = tuple(
        _record(number, task, tokenizer, *parts)
        for number, parts in enumerate(zip(problems, groups, scores, strict=True))
    )
    return summarize(records, chance=chance)


def _record(
    number: int,
    task: str,
    tokenizer: Tokenizer,
    problem: CorePrompts,
    rows: Sequence[Continuation],
    scores: Sequence[Score],
) -> ExampleRecord:
    has_options = problem.kind != "language_modeling"
    chosen = most_likely(scores) if has_options else 0 if scores[0].is_greedy else None
    gold = problem.gold if has_options else 0
    if problem.kind == "schema":  # the scored parts are equal; the options differ in what precedes them
        texts = problem.prompts
    else:
        texts = tuple(tokenizer.decode(row.tokens[row.start :]) for row in rows)
    return ExampleRecord(
        index=number,
        task=task,
        prompt=tokenizer.decode(rows[gold].tokens[: rows[gold].start]),
        output="" if chosen is None else texts[chosen],
        expected=texts[gold],
        correct=chosen == gold,
        options=texts if has_options else (),
        logprobs=tuple(score.logprob for score in scores),
        is_truncated=any(row.lost for row in rows),
        missing_examples=missing_examples(tokenizer, rows, problem.example_starts, asked=len(problem.example_starts)),
    )
