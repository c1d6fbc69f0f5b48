"""What is kept of every example, so that one can read what the model did."""

from __future__ import annotations

from dataclasses import dataclass

from nanochat.evals.metrics import Score


@dataclass(frozen=True)
class ExampleRecord:
    """One example of a suite; a line of `tables/SUITE.jsonl`."""

    index: int
    """Number of the example in its suite."""
    task: str
    prompt: str
    """What the model saw, special tokens written out; its end, where the context cut off the beginning."""
    output: str
    """What it chose or wrote."""
    expected: str
    correct: bool
    options: tuple[str, ...] = ()
    logprobs: tuple[float, ...] = ()
    """Nats of each option: the sum over its tokens."""
    sample: int = 0
    """Which of several completions of the same example."""
    is_truncated: bool = False
    """The prompt lost tokens on the left."""


@dataclass(frozen=True)
class TaskResult:
    """A suite's score and the records behind it."""

    score: Score
    records: tuple[ExampleRecord, ...]
    pass_at: tuple[tuple[int, float], ...] = ()
    """(k, pass@k) for the k that were estimated."""
