"""CORE: the three task types of the DCLM bundle, scored on tokens (Li et al. 2024, "DataComp-LM").

`multiple_choice` compares what follows the prompts' common beginning, `schema` their common end, `language_modeling`
asks that every token of the continuation be the likeliest. Not here: how prompts are written
(`nanochat.tasks.core.prompts`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import assert_never

from nanochat.evals.continuations import (
    Continuation,
    ContinuationScore,
    common_prefix_length,
    make_continuation,
    most_likely,
    score_continuations,
)
from nanochat.evals.metrics import score
from nanochat.evals.results import ExampleRecord, TaskResult
from nanochat.inference.causal_model import CausalModel
from nanochat.tasks.core.bundle import CorePrompts
from nanochat.tasks.core.prompts import CoreKind
from nanochat.tokenizer.bpe import Tokenizer


def find_continuations(kind: CoreKind, rows: Sequence[Sequence[int]], *, max_tokens: int | None) -> list[Continuation]:
    """Return the rows to score, with the span of each, from the tokens (BOS first) of a problem's prompts.

    Rows longer than `max_tokens` lose tokens on the left. For `language_modeling` the one row is the full prompt,
    scored from where it departs from the prompt without continuation.
    """
    match kind:
        case "multiple_choice":
            start = min(common_prefix_length(rows[0], row) for row in rows)
            return [make_continuation(row, start, len(row), max_tokens=max_tokens) for row in rows]
        case "schema":
            length = min(common_prefix_length(rows[0][::-1], row[::-1]) for row in rows)
            return [make_continuation(row, len(row) - length, len(row), max_tokens=max_tokens) for row in rows]
        case "language_modeling":
            context, full = rows
            return [make_continuation(full, common_prefix_length(context, full), len(full), max_tokens=max_tokens)]
        case _:
            assert_never(kind)


def choose_option(kind: CoreKind, scores: Sequence[ContinuationScore]) -> int | None:
    """Return the index of the prompt that the model chose, None for a continuation that it did not predict."""
    if kind == "language_modeling":
        return 0 if scores[0].is_greedy else None
    return most_likely(scores)


def evaluate_core_task(
    model: CausalModel,
    tokenizer: Tokenizer,
    problems: Sequence[CorePrompts],
    *,
    task: str,
    chance: float,
    max_tokens_per_batch: int | None = None,
    on_scored: Callable[[int], None] | None = None,
) -> TaskResult:
    """Return accuracy and records of one CORE task.

    Args:
        chance: accuracy of a guess as a share of 1 (the bundle's baseline is in percent).
        on_scored: called with the number of problems scored so far.
    """
    groups = []
    for problem in problems:
        rows = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in problem.prompts]
        groups.append(find_continuations(problem.kind, rows, max_tokens=model.config.sequence_len))
    found = score_continuations(model, groups, max_tokens_per_batch=max_tokens_per_batch, on_scored=on_scored)
    records = tuple(
        _record(number, task, tokenizer, problem, spans, scores)
        for number, (problem, spans, scores) in enumerate(zip(problems, groups, found, strict=True))
    )
    return TaskResult(score([float(record.correct) for record in records], chance=chance), records)


def _record(
    number: int,
    task: str,
    tokenizer: Tokenizer,
    problem: CorePrompts,
    spans: Sequence[Continuation],
    scores: Sequence[ContinuationScore],
) -> ExampleRecord:
    chosen = choose_option(problem.kind, scores)
    scored = tuple(tokenizer.decode(span.tokens[span.start : span.end]) for span in spans)
    gold = spans[0 if problem.kind == "language_modeling" else problem.gold]
    if problem.kind == "schema":  # the scored ends are alike: what differs is in front
        scored = tuple(problem.prompts)
    return ExampleRecord(
        index=number,
        task=task,
        prompt=tokenizer.decode(gold.tokens[: gold.start]),
        output="" if chosen is None else scored[chosen],
        expected=scored[0 if problem.kind == "language_modeling" else problem.gold],
        correct=chosen is not None and (problem.kind == "language_modeling" or chosen == problem.gold),
        options=scored if problem.kind != "language_modeling" else (),
        logprobs=tuple(found.logprob for found in scores),
        is_truncated=any(span.is_truncated for span in spans),
    )
