"""IsoFLOP curves have the minimum of the parabola that the results lie on, or say why they have none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nanochat.runner.scaling_laws.isoflop import fit_isoflop
from nanochat.runner.scaling_laws.trained_models import TrainedModel, UnfitError


def on_parabola(sizes, *, best: float = 10e6, flops: float = 6e16, curvature: float = 0.05) -> list[TrainedModel]:
    """Results on an exact parabola of the logarithm of the size, with its minimum, 2.5, at `best`."""
    return [
        TrainedModel(
            params=n, tokens=flops / 6 / n, flops=flops, loss=2.5 + curvature * math.log(n / best) ** 2, seed=0
        )
        for n in sizes
    ]


@pytest.mark.parametrize("sizes", [(4e6, 8e6, 30e6), (2e6, 5e6, 11e6, 24e6, 50e6)])
def test_isoflop_minimum_of_an_exact_parabola_is_exact(sizes):
    best = fit_isoflop(on_parabola(sizes)).curves[0].best
    assert best is not None
    assert best.params.value == pytest.approx(10e6, rel=1e-9)
    assert best.tokens.value == pytest.approx(1e9, rel=1e-9)
    assert best.tokens_per_param.value == pytest.approx(100, rel=1e-9)
    assert best.loss is not None
    assert best.loss.value == pytest.approx(2.5, rel=1e-9)


def test_isoflop_growth_has_the_exponents_of_exact_minima():
    budgets = {6e16: 10e6, 24e16: 20e6, 96e16: 40e6}  # four times the FLOPs, twice the size: exponent 1/2
    points = [p for flops, n in budgets.items() for p in on_parabola((n / 3, n, 3 * n), best=n, flops=flops)]
    growth = fit_isoflop(points).growth
    assert growth is not None
    assert [value.value for value in growth.exponents] == pytest.approx([0.5, 0.5])
    larger = growth.optimum(6e18)
    assert larger.params.value == pytest.approx(100e6)
    assert larger.tokens_per_param.value == pytest.approx(100)
    assert larger.is_extrapolated
    assert not growth.optimum(5e17).is_extrapolated


def test_isoflop_budgets_absorb_the_rounding_to_whole_steps():
    points = on_parabola((4e6, 8e6, 30e6), flops=6.0e16)
    points[1] = on_parabola((8e6,), flops=6.4e16)[0]
    assert [len(curve.settings.flops) for curve in fit_isoflop(points).curves] == [3]


def test_isoflop_intervals_hold_the_minimum_in_nine_of_ten_experiments(results):
    exact = {curve.flops: curve.best.params.value for curve in fit_isoflop(results()).curves if curve.best}
    rng, hits = np.random.default_rng(3), []
    for _ in range(40):
        for curve in fit_isoflop(results(noise=0.004, seeds=3, rng=rng)).curves:
            assert curve.best is not None
            assert curve.best.params.interval is not None
            low, high = curve.best.params.interval
            hits.append(low <= nearest(exact, curve.flops) <= high)
    # 120 intervals that hold the truth in 90 % of cases: three standard deviations are 0.08.
    assert np.mean(hits) == pytest.approx(0.9, abs=0.08)


def nearest(by_flops: dict[float, float], flops: float) -> float:
    return min(by_flops.items(), key=lambda item: abs(item[0] - flops))[1]


@pytest.mark.parametrize(
    ("points", "problem"),
    [
        (on_parabola((12e6, 24e6, 48e6)), "still falls at the smallest size, 12.0M parameters: add smaller ones"),
        (on_parabola((2e6, 4e6, 8e6)), "still falls at the largest size, 8.00M parameters: add larger ones"),
        (on_parabola((5e6, 10e6, 30e6), curvature=-0.1), "at the largest size, 30.0M parameters: add larger ones"),
        (on_parabola((2e6, 10e6, 30e6), curvature=-0.1), "at the smallest size, 2.00M parameters: add smaller ones"),
    ],
)
def test_isoflop_curve_without_a_minimum_says_which_sizes_to_add(points, problem):
    (curve,) = fit_isoflop(points).curves
    assert curve.best is None
    assert problem in curve.problem


def test_isoflop_keeps_the_other_budgets_if_one_has_too_few_sizes():
    points = on_parabola((4e6, 8e6, 30e6)) + on_parabola((4e6, 8e6), flops=6e17)
    fit = fit_isoflop(points)
    assert [curve.best is not None for curve in fit.curves] == [True, False]
    assert "needs 3 sizes, and this budget has 2" in fit.curves[1].problem
    assert fit.growth is None


@pytest.mark.parametrize(
    "points", [[], on_parabola((4e6, 8e6)), [p for n in (4e6, 8e6, 16e6) for p in on_parabola((n,), flops=n**2)]]
)
def test_isoflop_refuses_runs_without_three_sizes_of_one_budget(points):
    with pytest.raises(UnfitError, match="3 sizes that were trained with the same number of FLOPs"):
        fit_isoflop(points)


def test_isoflop_minimum_has_no_interval_if_other_seeds_would_often_have_no_minimum():
    # A curve of 0.001 between losses that differ by 0.05 from seed to seed.
    points = [
        TrainedModel(params=p.params, tokens=p.tokens, flops=p.flops, loss=p.loss + noise, seed=seed)
        for p in on_parabola((5e6, 10e6, 20e6), curvature=2e-3)
        for seed, noise in enumerate((-0.05, 0.0, 0.05))
    ]
    best = fit_isoflop(points).curves[0].best
    assert best is not None
    assert best.params.value == pytest.approx(10e6, rel=0.01)
    assert best.params.interval is None
