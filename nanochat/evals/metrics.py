"""Scores of texts and of tasks: means with standard errors, centring on chance, pass@k, composite scores. No MLX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """How likely a model finds a text."""

    logprob: float
    """The sum over its tokens, in nats, at most 0."""
    tokens: int
    """How many tokens were scored."""
    is_greedy: bool
    """Whether each of them is the model's most likely one."""

    @property
    def mean_nats(self) -> float:
        """Mean negative log-likelihood of a token; 0 for an empty text."""
        return -self.logprob / self.tokens if self.tokens else 0.0


@dataclass(frozen=True)
class TaskScore:
    """A mean over problems, each worth 0 to 1."""

    accuracy: float
    stderr: float
    """Standard error of the mean: sqrt(p (1 - p) / n) if every problem is right or wrong."""
    n: int
    chance: float

    @property
    def centred(self) -> float:
        """0 for guessing, 1 if every problem is right."""
        return centre(self.accuracy, self.chance)


def score_problems(values: Sequence[float], *, chance: float) -> TaskScore:
    """Return mean and standard error (population variance over n) of the problems' values, each in [0, 1]."""
    assert values, "a score needs at least one problem"
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
    return TaskScore(mean, math.sqrt(variance / len(values)), len(values), chance)


def centre(accuracy: float, chance: float) -> float:
    """Return (accuracy - chance) / (1 - chance), both as shares of 1 (Li et al. 2024, "DataComp-LM", CORE)."""
    return (accuracy - chance) / (1.0 - chance)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Return the unbiased estimate of P(one of k samples passes) (Chen et al. 2021, "Codex", equation 1)."""
    assert 1 <= k <= num_samples and 0 <= num_correct <= num_samples, f"pass@{k} of {num_correct}/{num_samples}"
    if num_samples - num_correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(num_samples - num_correct + 1, num_samples + 1))


def composite(scores: Sequence[TaskScore]) -> tuple[float, float]:
    """Return the mean accuracy and the mean centred accuracy of several suites (BaseCORE, ChatCORE)."""
    assert scores, "a composite score needs at least one suite"
    plain = math.fsum(s.accuracy for s in scores) / len(scores)
    return plain, math.fsum(s.centred for s in scores) / len(scores)
