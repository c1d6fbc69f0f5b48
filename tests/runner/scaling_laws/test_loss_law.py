"""The law of parameters and tokens recovers planted coefficients, and refuses results that do not suffice."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from nanochat.runner.scaling_laws.loss_law import LossLaw, fit_loss_law
from nanochat.runner.scaling_laws.trained_models import TrainedModel, UnfitError

NOISE = 0.004
"""Standard deviation of the log loss between seeds."""


def trained(params: float, tokens: float, loss: float, *, flops: float | None = None) -> TrainedModel:
    return TrainedModel(params=params, tokens=tokens, flops=flops or 6 * params * tokens, loss=loss, seed=0)


def planted(truth, law: LossLaw, flops: float):
    """Pairs of a planted number and its estimate."""
    params = truth.best_params(flops)
    tokens = flops / 6 / params
    best = law.optimum(flops)
    pairs = {name: (getattr(truth, name), value) for name, value in law.coefficients.items()}
    return pairs | {
        "params": (params, best.params),
        "tokens": (tokens, best.tokens),
        "tokens per parameter": (tokens / params, best.tokens_per_param),
        "loss": (truth.loss(params, tokens), best.loss),
    }


def test_loss_law_recovers_planted_coefficients_exactly_without_noise(truth, results):
    for name, (expected, found) in planted(truth, fit_loss_law(results()), 1e19).items():
        assert found.value == pytest.approx(expected, rel=1e-4), name
        assert found.interval is None, name


def check_coverage(truth, results, *, draws: int, at_least: float) -> None:
    rng, hits = np.random.default_rng(7), Counter[str]()
    for _ in range(draws):
        law = fit_loss_law(results(noise=NOISE, seeds=3, rng=rng))
        intervals = {name: (expected, *u.interval) for name, (expected, u) in planted(truth, law, 1e19).items()}
        hits.update(name for name, (expected, low, high) in intervals.items() if low <= expected <= high)
    shares = {name: hits[name] / draws for name in planted(truth, law, 1e19)}
    assert min(shares.values()) >= at_least, shares


def test_loss_law_intervals_hold_the_planted_coefficients(truth, results, few_draws):
    # If each interval holds the truth in 90 % of experiments, fewer than 5 of 8 happen once in 200 times.
    check_coverage(truth, results, draws=8, at_least=5 / 8)


@pytest.mark.slow
def test_loss_law_intervals_hold_the_planted_coefficients_in_nine_of_ten_experiments(truth, results):
    check_coverage(truth, results, draws=200, at_least=0.85)


def test_loss_law_ignores_one_setting_that_went_wrong(truth, results):
    points = results()
    points[7] = trained(points[7].params, points[7].tokens, 1.5 * points[7].loss)
    assert fit_loss_law(points).coefficients["E"].value == pytest.approx(truth.E, rel=0.01)


def test_loss_law_optimum_follows_measured_flops_per_token(truth):
    # 30 N^0.9 FLOPs per token: the best N minimises the loss at D = C / (30 N^0.9), found here by trying all N.
    points = [trained(n, d, truth.loss(n, d), flops=30 * n**0.9 * d) for n in (1e6, 4e6, 16e6) for d in (2e7, 1e8, 5e8)]
    grid = np.geomspace(1e5, 1e9, 200_001)
    tokens = 1e17 / (30 * grid**0.9)
    losses = truth.E + truth.A / grid**truth.a + truth.B / tokens**truth.b
    best = fit_loss_law(points).optimum(1e17)
    assert best.params.value == pytest.approx(grid[losses.argmin()], rel=2e-3)
    assert best.tokens.value == pytest.approx(tokens[losses.argmin()], rel=2e-3)
    assert best.loss is not None
    assert best.loss.value == pytest.approx(losses.min(), rel=1e-5)


def test_loss_law_marks_budgets_beyond_the_runs(results):
    law = fit_loss_law(results())
    assert [law.optimum(flops).is_extrapolated for flops in (1e15, 1e16, 1e17, 1e18, 1e19)] == [
        True,
        *[False] * 3,
        True,
    ]


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], "3 different sizes, and the runs have 0"),
        ([trained(n, d, 3.0) for n in (1e6, 2e6) for d in (1e8, 2e8, 4e8)], "3 different sizes, and the runs have 2"),
        ([trained(n, d, 3.0) for n in (1e6, 2e6, 4e6) for d in (1e8, 2e8)], "3 different numbers of tokens"),
        ([trained(n, 20 * n, 3.0) for n in (1e6, 2e6, 4e6)], "6 different settings, and the runs have 3"),
        ([trained(1e6, 1e7, float("nan"))], "above zero; seed 0 has parameters 1e.06, tokens 1e.07, .* loss nan"),
        ([trained(1e6, 1e7, 0.0)], "loss 0"),
    ],
)
def test_loss_law_refuses_too_few_results(points, message):
    with pytest.raises(UnfitError, match=message):
        fit_loss_law(points)


@pytest.mark.parametrize("exponent", [1, -1])
def test_loss_law_refuses_tokens_that_follow_from_the_size(truth, exponent):
    # Equal tokens per parameter, or a single number of FLOPs.
    pairs = [(n, 2e8 * (n / 1e7) ** exponent) for n in np.geomspace(1e6, 1e8, 8)]
    with pytest.raises(UnfitError, match="the effect of one cannot be told from that of the other"):
        fit_loss_law([trained(n, d, truth.loss(n, d)) for n, d in pairs])


def test_loss_law_refuses_losses_that_do_not_fall_with_the_tokens(truth):
    points = [trained(n, d, 2 + truth.A / n**truth.a) for n in (1e6, 4e6, 16e6) for d in (2e7, 1e8, 5e8)]
    with pytest.raises(UnfitError, match="does not follow a power of tokens"):
        fit_loss_law(points)


def test_loss_law_of_pure_noise_is_refused_or_has_finite_numbers(few_draws):
    rng = np.random.default_rng(5)
    for _ in range(4):
        points = [
            TrainedModel(params=n, tokens=d, flops=6 * n * d, loss=float(np.exp(rng.normal())), seed=seed)
            for n in (1e5, 2e5, 4e5)
            for d in (1e6, 2e6, 4e6)
            for seed in range(2)
        ]
        try:
            best = fit_loss_law(points).optimum(1e14)
        except UnfitError:
            continue
        assert np.isfinite([best.params.value, best.tokens.value, best.tokens_per_param.value]).all()
