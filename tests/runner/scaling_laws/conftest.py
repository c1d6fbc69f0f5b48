"""Synthetic results of sweeps, with planted coefficients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from nanochat.runner.scaling_laws.trained_models import TrainedModel


@dataclass(frozen=True)
class Truth:
    """The law that the synthetic results follow: E, A, B and exponents of Hoffmann et al. 2022, table A3 and (10)."""

    E: float = 1.69
    A: float = 406.4
    B: float = 410.7
    a: float = 0.34
    b: float = 0.28

    def loss(self, params: float, tokens: float) -> float:
        return float(self.E + self.A / params**self.a + self.B / tokens**self.b)

    def best_params(self, flops: float) -> float:
        """The closed form of Hoffmann et al. 2022, (4), for 6 N D FLOPs."""
        ratio = (self.a * self.A / (self.b * self.B)) ** (1 / (self.a + self.b))
        return float(ratio * (flops / 6) ** (self.b / (self.a + self.b)))


TRUTH = Truth()
BUDGETS = (1e16, 1e17, 1e18)
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
Results = Callable[..., list[TrainedModel]]


def isoflop_results(
    *,
    noise: float = 0.0,
    seeds: int = 1,
    rng: np.random.Generator | None = None,
    factors: Sequence[float] = FACTORS,
    loss: Callable[[float, float], float] = TRUTH.loss,
) -> list[TrainedModel]:
    """Sizes at these factors from the best one of each budget, with relative noise on each loss."""
    results = []
    for flops in BUDGETS:
        for params in (TRUTH.best_params(flops) * factor for factor in factors):
            tokens = flops / 6 / params
            for seed in range(seeds):
                factor = np.exp(noise * rng.normal()) if rng is not None else 1.0
                value = loss(params, tokens) * float(factor)
                results.append(TrainedModel(params=params, tokens=tokens, flops=flops, loss=value, seed=seed))
    return results


@pytest.fixture
def truth() -> Truth:
    return TRUTH


@pytest.fixture
def results() -> Results:
    return isoflop_results


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute intervals from fewer resampled experiments, each of which is fitted. Theirs are a little less exact."""
    monkeypatch.setattr("nanochat.runner.scaling_laws.trained_models.DRAWS", 50)
