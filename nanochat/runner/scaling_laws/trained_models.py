"""The results that scaling laws are fitted to, their noise between seeds, and numbers with an interval.

Reads and writes no files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.9
"""Confidence level of the intervals, which cover the noise between seeds and nothing else."""
DRAWS = 200
"""Resampled experiments from which intervals are computed."""
_MAX_FAILED_FRAC = 1 - CONFIDENCE
"""A fit has no interval if it fails in more than this share of the resampled experiments."""


class UnfitError(Exception):
    """The results do not suffice for a fit. The message says what is missing and what to add."""


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """One result: a model of `params` parameters, trained on `tokens` tokens with `flops` FLOPs.

    Two results belong to the same setting, and differ by noise alone, if all but their seed and loss is equal.
    `loss` may be any positive measure of which a lower value is better.
    """

    params: float
    tokens: float
    flops: float
    loss: float
    seed: int

    @property
    def setting(self) -> tuple[float, float, float]:
        return self.params, self.tokens, self.flops


@dataclass(frozen=True)
class Uncertain:
    """A number and the ends of its interval, which is None if no setting was repeated with another seed."""

    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The model that reaches the lowest loss with a number of training FLOPs."""

    flops: float
    params: Uncertain
    tokens: Uncertain
    tokens_per_param: Uncertain
    loss: Uncertain | None
    """None if the fit does not predict it."""
    is_extrapolated: bool
    """Whether the number of FLOPs is outside of the range of the fitted runs."""


def make_optimum(
    flops: float, params: np.ndarray, tokens: np.ndarray, *, loss: np.ndarray | None, is_extrapolated: bool
) -> Optimum:
    """Return the best model, with intervals from the resampled experiments (each array: 1 + draws)."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # of resampled experiments
        ratio = tokens / params
    return Optimum(
        flops=flops,
        params=with_interval(params),
        tokens=with_interval(tokens),
        tokens_per_param=with_interval(ratio),
        loss=None if loss is None else with_interval(loss),
        is_extrapolated=is_extrapolated,
    )


@dataclass(frozen=True, kw_only=True)
class MeanResults:
    """Mean results of different settings: `params`, `tokens` and `flops` (settings), `losses` (1 + draws, settings).

    The first row of `losses` has the geometric means of the measured losses, and the others those of experiments with
    other seeds. There are no others if no setting was repeated.
    """

    params: np.ndarray
    tokens: np.ndarray
    flops: np.ndarray
    losses: np.ndarray

    def select(self, indices: Sequence[int]) -> MeanResults:
        """Return some of the settings."""
        chosen = np.array(indices, dtype=int)
        return MeanResults(
            params=self.params[chosen],
            tokens=self.tokens[chosen],
            flops=self.flops[chosen],
            losses=self.losses[:, chosen],
        )


def average_seeds(points: Sequence[TrainedModel]) -> MeanResults:
    """Return the mean results by setting. An UnfitError names a result that has no logarithm."""
    _check_positive(points)
    groups: dict[tuple[float, float, float], list[float]] = defaultdict(list)
    for point in points:
        groups[point.setting].append(float(np.log(point.loss)))
    settings = dict(sorted(groups.items()))
    columns = np.array(list(settings), dtype=float).reshape(-1, 3).T
    means = np.array([np.mean(losses) for losses in settings.values()])
    resampled = _resample_means(list(settings.values()), means)
    params, tokens, flops = columns
    return MeanResults(params=params, tokens=tokens, flops=flops, losses=np.exp(np.vstack([means, resampled])))


def _resample_means(groups: Sequence[Sequence[float]], means: np.ndarray) -> np.ndarray:
    """Return the means (draws, settings) of resampled experiments; the same ones for the same results.

    A drawn loss is the mean of its setting plus a deviation from such a mean, drawn from those of all settings. A mean
    of K results has taken 1/K of the variance with it, so deviations are enlarged accordingly.
    """
    deviations = [
        (np.array(group) - mean) * np.sqrt(len(group) / (len(group) - 1))
        for group, mean in zip(groups, means, strict=True)
        if len(group) > 1
    ]
    if not deviations:
        return np.empty((0, len(means)))
    noise = np.concatenate(deviations)
    random = np.random.default_rng(0)
    drawn = [random.choice(noise, size=(DRAWS, len(group))).mean(axis=1) for group in groups]
    return np.asarray(means + np.stack(drawn, axis=1))


def _check_positive(points: Sequence[TrainedModel]) -> None:
    for point in points:
        values = (*point.setting, point.loss)
        if not all(np.isfinite(value) and value > 0 for value in values):
            names = ("parameters", "tokens", "FLOPs", "loss")
            shown = ", ".join(f"{name} {value:g}" for name, value in zip(names, values, strict=True))
            raise UnfitError(f"a law needs results above zero; seed {point.seed} has {shown}")


def with_interval(values: np.ndarray) -> Uncertain:
    """Return the first of `values` with the interval between the outer percentiles of the others, the resampled ones.

    Resampled values that are not finite count as failures. Too many of them leave the value without an interval.
    """
    value, drawn = float(values[0]), np.where(np.isfinite(values[1:]), values[1:], np.nan)
    if not len(drawn) or np.isnan(drawn).mean() > _MAX_FAILED_FRAC:
        return Uncertain(value)
    low, high = np.nanpercentile(drawn, (100 * (1 - CONFIDENCE) / 2, 100 * (1 + CONFIDENCE) / 2))
    return Uncertain(value, (float(low), float(high)))
