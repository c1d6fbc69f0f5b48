"""IsoFLOP curves: at each number of training FLOPs, a parabola of the loss by the logarithm of the model's size.

Its minimum is the best size at that number of FLOPs; the best sizes of several numbers follow a power law. Source:
Hoffmann et al. 2022 (2203.15556), section 3.2 ("approach 2").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nanochat.plan.quantities import show_count
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

_BUDGET_TOLERANCE = 1.2
"""Runs whose FLOPs differ by less than this factor have the same budget: steps make each of them a little larger."""
_MIN_SIZES = 3
_MAX_LOG_DISTANCE = 100.0
"""A minimum is clipped to this distance from the centre of the sizes, in logarithms, so that its size is finite."""


@dataclass(frozen=True, kw_only=True)
class Parabola:
    """loss = level + slope * u + curvature * u^2 with u = log(params) - centre, for each experiment (1 + draws)."""

    centre: float
    level: np.ndarray
    slope: np.ndarray
    curvature: np.ndarray

    def predict(self, params: np.ndarray) -> np.ndarray:
        """Return the loss of models of these sizes, by the parabola of the measured results."""
        u = np.log(params) - self.centre
        return np.asarray(self.level[0] + self.slope[0] * u + self.curvature[0] * u**2)

    def minimum(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the size with the lowest loss, and that loss. Both are NaN for a parabola that has no minimum."""
        u = -self.slope / (2 * np.where(self.curvature > 0, self.curvature, np.nan))
        u = np.clip(u, -_MAX_LOG_DISTANCE, _MAX_LOG_DISTANCE)
        return np.exp(u + self.centre), self.level + self.slope * u / 2


@dataclass(frozen=True, kw_only=True)
class IsoflopCurve:
    """The runs of one budget, and their parabola if they have at least three sizes."""

    flops: float
    settings: MeanResults
    parabola: Parabola | None
    best: Optimum | None
    problem: str
    """Why there is no best size. Empty if there is one."""


@dataclass(frozen=True, kw_only=True)
class GrowthLaw:
    """The best number of parameters and of tokens, each as a power of FLOPs.

    `params` and `tokens` hold the exponent and the log value at `centre` (log FLOPs), (2, 1 + draws).
    """

    centre: float
    params: np.ndarray
    tokens: np.ndarray
    range: tuple[float, float]

    @property
    def exponents(self) -> tuple[Uncertain, Uncertain]:
        """The exponents of parameters and of tokens."""
        return with_interval(self.params[0]), with_interval(self.tokens[0])

    def optimum(self, flops: float) -> Optimum:
        """Return the best size and tokens at a number of FLOPs."""
        distance = np.array([np.log(flops) - self.centre, 1.0])
        params, tokens = np.exp(distance @ self.params), np.exp(distance @ self.tokens)
        is_extrapolated = not self.range[0] / _BUDGET_TOLERANCE <= flops <= self.range[1] * _BUDGET_TOLERANCE
        return make_optimum(flops, params, tokens, loss=None, is_extrapolated=is_extrapolated)


@dataclass(frozen=True, kw_only=True)
class IsoflopFit:
    """The curve of each budget, in order, and how the best size grows if at least two of them have one."""

    curves: tuple[IsoflopCurve, ...]
    growth: GrowthLaw | None


def fit_isoflop(points: Sequence[TrainedModel]) -> IsoflopFit:
    """Return the curves of all budgets. An UnfitError says why there is not a single parabola."""
    settings = average_seeds(points)
    budgets = [settings.select(group) for group in _budgets(settings.flops)]
    most = max((len(np.unique(budget.params)) for budget in budgets), default=0)
    if most < _MIN_SIZES:
        raise UnfitError(
            f"a parabola needs {_MIN_SIZES} sizes that were trained with the same number of FLOPs, and the runs have "
            f"at most {most}: use `horizon: {{flops: ...}}` and vary the size of the model"
        )
    curves = tuple(_fit_curve(budget) for budget in budgets)
    return IsoflopFit(curves=curves, growth=_fit_growth(curves))


def _budgets(flops: np.ndarray) -> list[list[int]]:
    """Return the indices of the settings of each budget, in order of FLOPs."""
    groups: list[list[int]] = []
    for index in np.argsort(flops):
        if groups and flops[index] < _BUDGET_TOLERANCE * flops[groups[-1][0]]:
            groups[-1].append(int(index))
        else:
            groups.append([int(index)])
    return groups


def _fit_curve(settings: MeanResults) -> IsoflopCurve:
    budget, sizes = float(np.exp(np.log(settings.flops).mean())), np.unique(settings.params)
    if len(sizes) < _MIN_SIZES:
        problem = f"a parabola needs {_MIN_SIZES} sizes, and this budget has {len(sizes)}"
        return IsoflopCurve(flops=budget, settings=settings, parabola=None, best=None, problem=problem)
    parabola = _fit_parabola(settings.params, settings.losses)
    problem = _minimum_problem(parabola, sizes)
    best = None if problem else _best_of(settings, budget, parabola)
    return IsoflopCurve(flops=budget, settings=settings, parabola=parabola, best=best, problem=problem)


def _fit_parabola(params: np.ndarray, losses: np.ndarray) -> Parabola:
    """Return the least-squares parabola of each row of `losses` (experiments, settings)."""
    log_params = np.log(params)
    centre = float(log_params.mean())
    u = log_params - centre
    design = np.stack([np.ones_like(u), u, u**2], axis=1)
    level, slope, curvature = np.linalg.lstsq(design, losses.T, rcond=None)[0]
    return Parabola(centre=centre, level=level, slope=slope, curvature=curvature)


def _minimum_problem(parabola: Parabola, sizes: np.ndarray) -> str:
    """Return why the parabola of the measured results has no minimum within the measured sizes, or nothing."""
    smallest, largest = sizes[0], sizes[-1]
    best = float(parabola.minimum()[0][0])
    if smallest <= best <= largest:
        return ""
    at_smallest, at_largest = parabola.predict(sizes[[0, -1]])
    if best > largest or (np.isnan(best) and at_largest < at_smallest):
        return f"the loss still falls at the largest size, {show_count(largest)} parameters: add larger ones"
    return f"the loss still falls at the smallest size, {show_count(smallest)} parameters: add smaller ones"


def _best_of(settings: MeanResults, budget: float, parabola: Parabola) -> Optimum:
    best, loss = parabola.minimum()
    return make_optimum(budget, best, _tokens_at(settings, best), loss=loss, is_extrapolated=False)


def _tokens_at(settings: MeanResults, params: np.ndarray) -> np.ndarray:
    """Return the tokens of a budget at these sizes, by a parabola of the logarithms."""
    fit = np.polynomial.Polynomial.fit(np.log(settings.params), np.log(settings.tokens), 2)
    return np.asarray(np.exp(fit(np.log(params))))


def _fit_growth(curves: Sequence[IsoflopCurve]) -> GrowthLaw | None:
    with_minimum = [curve for curve in curves if curve.best is not None and curve.parabola is not None]
    if len(with_minimum) < 2:
        return None
    log_flops = np.log([curve.flops for curve in with_minimum])
    centre = float(log_flops.mean())
    design = np.stack([log_flops - centre, np.ones_like(log_flops)], axis=1)
    best = [curve.parabola.minimum()[0] for curve in with_minimum if curve.parabola is not None]
    tokens = [_tokens_at(curve.settings, params) for curve, params in zip(with_minimum, best, strict=True)]
    solve = np.linalg.pinv(design)
    return GrowthLaw(
        centre=centre,
        params=solve @ np.log(best),
        tokens=solve @ np.log(tokens),
        range=(with_minimum[0].flops, with_minimum[-1].flops),
    )
