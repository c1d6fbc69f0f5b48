"""The result of one task: its score, and a record of every example, so that readers can see what the model did."""

from __future__ import annotations

from dataclasses import dataclass

from nanochat.evals.metrics import Score, score_problems


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
    options: tuple[str, ...] = ()
    logprobs: tuple[float, ...] = ()
    """Log-probability of each option in nats, summed over its tokens."""
    sample: int = 0
    """Number of the completion, if the model completed the same example several times."""
    is_truncated: bool = False
    """Whether the prompt lost its first tokens."""


@dataclass(frozen=True)
class TaskResult:
    """The score of a suite, and the records that it summarizes."""

    score: Score
    records: tuple[ExampleRecord, ...]
    pass_at: tuple[tuple[int, float], ...] = ()
    """(k, pass@k) for the k that were estimated."""


def summarize(records: tuple[ExampleRecord, ...], *, chance: float) -> TaskResult:
    """Return the result of a task with one record for each problem."""
    return TaskResult(score_problems([float(record.correct) for record in records], chance=chance), records)
