"""The law L(N, D) = E + A / N^a + B / D^b: loss by parameters N and tokens D, and the best N and D of a budget.

Source: Hoffmann et al. 2022 (2203.15556), section 3.3 ("approach 3"). That paper counts 6 N D FLOPs. Here FLOPs per
token are a power of N that is fitted to the runs, because attention makes small models more expensive than 6 N.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nanochat.runner.scaling_laws.power_terms import MAX_EXPONENT, PowerTerms, fit_power_terms
from nanochat.runner.scaling_laws.trained_models import (
    MeanResults,
    Optimum,
    TrainedModel,
    Uncertain,
    UnfitError,
    average_seeds,
    make_optimum,
    with_interval,
)

_MIN_LEVELS = 3
"""Different sizes, and different numbers of tokens: a power and a constant take two of them."""
_BUDGET_TOLERANCE = 1.01
"""A number of FLOPs may exceed those of the runs by this factor before it counts as extrapolated."""
_MIN_SETTINGS = 6
"""The law has five coefficients."""
_MIN_EXPONENT = 0.01
"""With a smaller exponent, a thousand times as many parameters or tokens would change their part of the loss by 7 %."""
_MIN_SPREAD = 0.1
"""The least standard deviation of log tokens around a line by log parameters. Runs with equal tokens per parameter, or
with equal FLOPs, lie on such a line."""


@dataclass(frozen=True, kw_only=True)
class LossLaw:
    """A fitted law: that of the measured results first, then those of the experiments resampled over seeds."""

    settings: MeanResults
    terms: PowerTerms
    flops_factor: float
    """FLOPs per token are flops_factor * N ** flops_exponent."""
    flops_exponent: float

    @property
    def coefficients(self) -> Mapping[str, Uncertain]:
        """E, A, a, B and b."""
        (big_a, big_b), (a, b) = self.terms.coefficients.T, self.terms.exponents.T
        named = {"E": self.terms.floor, "A": big_a, "a": a, "B": big_b, "b": b}
        return {name: with_interval(values) for name, values in named.items()}

    @property
    def misfit(self) -> float:
        """Median distance between predicted and measured loss, as a share of the loss."""
        predicted = self.predict(self.settings.params, self.settings.tokens)[0]
        return float(np.median(np.abs(predicted / self.settings.losses[0] - 1)))

    def predict(self, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Return the loss (1 + draws, points) of models of these sizes after these numbers of tokens."""
        return self.terms.predict(np.stack([params, tokens], axis=-1))

    def tokens_for(self, params: np.ndarray, flops: float) -> np.ndarray:
        """Return the tokens that models of these sizes can be trained on with a number of FLOPs."""
        return np.asarray(flops / (self.flops_factor * params**self.flops_exponent))

    def optimum(self, flops: float) -> Optimum:
        """Return the size and the tokens with the lowest loss at a number of training FLOPs.

        There the derivative of the loss by N is zero. D = (C / k) N^-g gives a A N^-a = g b B (k / C)^b N^(g b).
        """
        (big_a, big_b), (a, b) = self.terms.coefficients.T, self.terms.exponents.T
        growth = self.flops_exponent
        log_params = np.log(a * big_a / (growth * b * big_b)) + b * np.log(flops / self.flops_factor)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # of resampled experiments
            params = np.exp(log_params / (a + growth * b))
            tokens = self.tokens_for(params, flops)
            loss = self.terms.floor + big_a / params**a + big_b / tokens**b
        measured = self.settings.flops
        is_extrapolated = not measured.min() / _BUDGET_TOLERANCE <= flops <= measured.max() * _BUDGET_TOLERANCE
        return make_optimum(flops, params, tokens, loss=loss, is_extrapolated=is_extrapolated)


def fit_loss_law(points: Sequence[TrainedModel]) -> LossLaw:
    """Return the law that fits the mean results best. An UnfitError says why they do not suffice."""
    settings = average_seeds(points)
    _check_variety(settings)
    sizes = np.stack([settings.params, settings.tokens], axis=1)
    terms = fit_power_terms(sizes, settings.losses)
    for name, power in zip(("parameters", "tokens"), terms.exponents[0], strict=True):
        if not _MIN_EXPONENT < power < MAX_EXPONENT:
            raise UnfitError(
                f"the loss of the runs does not follow a power of {name} (the exponent would be {power:.2g}): vary "
                f"{name} more, or repeat the runs with other seeds"
            )
    exponent, log_factor = np.polyfit(np.log(settings.params), np.log(settings.flops / settings.tokens), 1)
    return LossLaw(
        settings=settings, terms=terms, flops_factor=float(np.exp(log_factor)), flops_exponent=float(exponent)
    )


def _check_variety(settings: MeanResults) -> None:
    for name, values in (("sizes", settings.params), ("numbers of tokens", settings.tokens)):
        if (count := len(np.unique(values))) < _MIN_LEVELS:
            raise UnfitError(f"it needs {_MIN_LEVELS} different {name}, and the runs have {count}")
    if (count := len(settings.flops)) < _MIN_SETTINGS:
        raise UnfitError(f"its 5 coefficients need {_MIN_SETTINGS} different settings, and the runs have {count}")
    log_params, log_tokens = np.log(settings.params), np.log(settings.tokens)
    trend = np.polynomial.Polynomial.fit(log_params, log_tokens, 1)
    if np.std(log_tokens - trend(log_params)) < _MIN_SPREAD:
        raise UnfitError(
            "the tokens of the runs follow from their sizes, so the effect of one cannot be told from that of the "
            "other: train sizes on more and on fewer tokens"
        )
