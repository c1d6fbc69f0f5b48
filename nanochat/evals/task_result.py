"""The result of one task: its score, and a record of every example, so that readers can see what the model did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nanochat.evals.metrics import TaskScore, score_problems


@dataclass(frozen=True)
class ExampleRecord:
    """One example of a suite; a line of `tables/SUITE.jsonl`."""

    index: int
    """Number of the example in its suite."""
    task: str
    prompt: str
    """What the model read, special tokens written out; only its end if the context was too short."""
    output: str
    """What the model chose or wrote."""
    expected: str
    correct: bool
    score: float | None = None
    """The score of an answer that is neither right (1) nor wrong (0)."""
    problem: str = ""
    """Why the answer could not be graded; it then scores 0."""
    options: tuple[str, ...] = ()
    logprobs: tuple[float, ...] = ()
    """Log-probability of each option in nats, summed over its tokens."""
    sample: int = 0
    """Number of the completion, if the model completed the same example several times."""
    is_truncated: bool = False
    """Whether the prompt lost its first tokens."""
    missing_examples: int | None = None
    """The number of solved examples before the problem that the model did not read whole: the data had no more, or the
    context was too short. None if there should be none."""
    hit_limit: bool | None = None
    """Whether the answer was stopped because it reached `max_tokens` or the end of the context. None if the model
    generated nothing."""


@dataclass(frozen=True)
class TaskResult:
    """The score of a suite, and the records that it summarizes."""

    score: TaskScore
    records: tuple[ExampleRecord, ...]
    pass_at: tuple[tuple[int, float], ...] = ()
    """(k, pass@k) for the k that were estimated."""


@dataclass(frozen=True)
class Cuts:
    """How much of a suite the model could not read or write. None if there was nothing of the kind to cut."""

    problems: int
    answers: int
    prompts_cut: int
    """Problems whose prompt lost its first tokens."""
    examples_cut: int | None
    """Problems that came after fewer solved examples than they should."""
    answers_cut: int | None
    """Answers that were stopped at the limit of their length."""
    ungraded: int = 0
    """Answers that could not be graded."""
    first_problem: str = ""
    """Why the first of these could not."""


def count_cuts(records: Sequence[ExampleRecord]) -> Cuts:
    """Return the cuts in a suite with these records."""
    problems = {(record.task, record.index): record for record in records}
    examples = [record.missing_examples for record in problems.values() if record.missing_examples is not None]
    problems_of_grading = [record.problem for record in records if record.problem]
    limits = [record.hit_limit for record in records if record.hit_limit is not None]
    return Cuts(
        problems=len(problems),
        answers=len(limits),
        prompts_cut=sum(record.is_truncated for record in problems.values()),
        examples_cut=sum(missing > 0 for missing in examples) if examples else None,
        answers_cut=sum(limits) if limits else None,
        ungraded=len(problems_of_grading),
        first_problem=next(iter(problems_of_grading), ""),
    )


def summarize(records: tuple[ExampleRecord, ...], *, chance: float) -> TaskResult:
    """Return the result of a task with one record for each problem."""
    return TaskResult(score_problems([float(record.correct) for record in records], chance=chance), records)
