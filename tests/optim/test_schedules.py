"""Schedules compared with values computed by hand."""

import math

import pytest

from nanochat.optim.schedules import (
    ScheduleConfig,
    defaults,
    lr_multiplier,
    muon_momentum,
    sft_defaults,
    sft_lr_multiplier,
    weight_decay_at,
)

TRAPEZOID = ScheduleConfig(steps=10, kind="trapezoid", warmup_steps=4, warmdown_steps=4, final_frac=0.2)
COSINE = ScheduleConfig(steps=6, kind="cosine", warmdown_steps=4)
CONSTANT = ScheduleConfig(steps=4, kind="constant", warmup_steps=2, warmdown_steps=3)
OVERLAPPING = ScheduleConfig(steps=4, kind="trapezoid", warmup_steps=4, warmdown_steps=4)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (TRAPEZOID, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4]),  # warm-up in quarters, then towards 0.2
        (COSINE, [1.0, 1.0, 1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
        (CONSTANT, [0.5, 1.0, 1.0, 1.0]),  # ignores a warm-down
        (OVERLAPPING, [0.25, 0.5, 0.5, 0.25]),  # the smaller of (1,2,3,4)/4 and (4,3,2,1)/4
    ],
)
def test_lr_multiplier_at_every_step(config, expected):
    assert [lr_multiplier(config, step) for step in range(config.steps)] == pytest.approx(expected)


def test_current_momentum_rises_over_400_steps_then_falls():
    """0.85 to 0.97 at step 400, constant, then linear towards 0.90 at the end."""
    config = ScheduleConfig(steps=1000, kind="trapezoid", warmdown_steps=100)
    momenta = [muon_momentum("current", step, config) for step in (0, 200, 400, 900, 950)]
    assert momenta == pytest.approx([0.85, 0.91, 0.97, 0.97, 0.935])


def test_current_momentum_rises_through_an_early_warmdown():
    """Like nanochat: 0.85 + 0.12 * step / 400 before step 400, and only then the warm-down from 0.97 to 0.90."""
    short = ScheduleConfig(steps=100, kind="trapezoid", warmdown_steps=65)
    assert [muon_momentum("current", step, short) for step in (0, 50, 99)] == pytest.approx([0.85, 0.865, 0.8797])
    longer = ScheduleConfig(steps=500, kind="trapezoid", warmdown_steps=325)  # step 400 is 225 / 325 into the warm-down
    momenta = [muon_momentum("current", step, longer) for step in (399, 400)]
    assert momenta == pytest.approx([0.9697, 0.97 - 0.07 * 225 / 325])


def test_plain_momentum_falls_over_the_warmdown():
    """0.95, then linear towards 0.80 at the end."""
    momenta = [muon_momentum("plain", step, TRAPEZOID) for step in (0, 6, 7, 8, 9)]
    assert momenta == pytest.approx([0.95, 0.95, 0.9125, 0.875, 0.8375])


def test_plain_weight_decay_rises_over_the_warmdown():
    assert [weight_decay_at("plain", 0.4, TRAPEZOID, step) for step in (0, 6, 7, 8, 9)] == pytest.approx(
        [0, 0, 0.1, 0.2, 0.3]
    )


def test_current_weight_decay_is_a_cosine_over_the_run():
    decays = [weight_decay_at("current", 0.4, TRAPEZOID, step) for step in (0, 5)]
    assert decays == pytest.approx([0.4, 0.2])
    last = weight_decay_at("current", 0.4, TRAPEZOID, 9)
    assert last == pytest.approx(0.2 * (1 + math.cos(0.9 * math.pi)))


def test_constant_rate_keeps_momentum_and_decay():
    """Without a warm-down, plain keeps a momentum of 0.95 and no decay up to the end."""
    config = ScheduleConfig(steps=10, kind="constant", warmdown_steps=5)
    assert muon_momentum("plain", 9, config) == 0.95
    assert weight_decay_at("plain", 0.4, config, 9) == 0.0


def test_sft_rate():
    """1 up to 80 % of the rows, then linear to final_frac, but not below it."""
    values = [sft_lr_multiplier(progress, 0.8, 0.1) for progress in (0, 0.8, 0.9, 1.0, 1.2)]
    assert values == pytest.approx([1, 1, 0.55, 0.1, 0.1])
    assert sft_lr_multiplier(1.0, 1.0, 0.0) == 1.0


def test_defaults_of_both_variants():
    assert defaults("plain").kind == "cosine"
    assert defaults("current") == ("trapezoid", 40, 0.65, 0.05)
    assert sft_defaults("plain") == (1.0, 0.8, 0.0)
    assert sft_defaults("current") == (0.8, 0.5, 0.0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"steps": 0}, "horizon is 0 steps"),
        ({"steps": 10, "warmdown_steps": 11}, "warm-down of 11 steps is longer than the horizon of 10"),
        ({"steps": 10, "warmup_steps": 11}, "warm-up of 11 steps is longer than the horizon of 10"),
    ],
)
def test_impossible_schedules_are_named(values, words):
    (problem,) = ScheduleConfig(**values).problems()
    assert words in problem
    assert TRAPEZOID.problems() == []
