"""Muon compared with the golden files, its step size at several shapes, and special cases."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from nanochat.optim.muon import muon_update, second_moment_shape

GOLDEN = Path(__file__).parents[1] / "golden"
VARIANTS = ["plain", "current"]


def golden(name):
    return mx.load(str(GOLDEN / f"{name}.safetensors")), json.loads((GOLDEN / f"{name}.json").read_text())


def largest(x):
    return float(np.abs(np.asarray(x, dtype=np.float64)).max())


def run_steps(tensors, settings, variant, dtype=mx.float32):
    """Yield (parameter, momentum, second moment) after each of three steps."""
    p = tensors["p0"].astype(dtype)
    m, s = mx.zeros(p.shape), mx.zeros(second_moment_shape(p.shape))
    for step in (1, 2, 3):
        options = {k: settings[k] for k in ("lr", "momentum", "beta2", "weight_decay")}
        p, m, s = muon_update(p, tensors[f"grad{step}"].astype(dtype), m, s, variant=variant, **options)
        yield p, m, s


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["muon_96x32", "muon_32x96"])
def test_three_steps(name, variant):
    """Changes of the parameter, and moments, are within 1e-4 of their largest entry."""
    tensors, facts = golden(name)
    before, golden_before = tensors["p0"], tensors["p0"]
    steps = list(run_steps(tensors, facts["variants"][variant], variant))
    for step, (p, _, s) in enumerate(steps, start=1):
        golden_p, golden_s = tensors[f"{variant}.p{step}"], tensors[f"{variant}.second_momentum{step}"]
        change = golden_p - golden_before
        assert largest((p - before) - change) <= 1e-4 * largest(change)
        assert s.shape == golden_s.shape
        assert largest(s - golden_s) <= 1e-4 * largest(golden_s)
        before, golden_before = p, golden_p
    _, momentum, _ = steps[-1]
    assert largest(momentum - tensors["momentum3"]) <= 1e-5 * largest(tensors["momentum3"])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("shape", "tolerance"),
    [((768, 768), 0.01), ((3072, 768), 0.01), ((128, 512), 0.03), ((512, 128), 0.03), ((6, 32), 0.03)],
)
def test_size_of_a_step(shape, tolerance, variant):
    """RMS(update) / lr = sqrt(max(1, r/c)) * sqrt(min(r, c) / (r c)) at the first step from a random gradient.

    `current` renormalises to exactly that. In `plain` the five quintics leave singular values between about 0.9 and
    1.1, whose mean square is up to 3 % from 1 where the spectrum is narrow, as it is in thin and in small matrices.
    """
    rows, cols = shape
    gradient = mx.random.normal((1, rows, cols), key=mx.random.key(3))
    zeros = mx.zeros((1, rows, cols))
    options = {"lr": 0.02, "momentum": 0.95, "beta2": 0.95, "weight_decay": 0.0}
    second = mx.zeros(second_moment_shape(zeros.shape))
    updated, _, _ = muon_update(zeros, gradient, zeros, second, variant=variant, **options)
    rms = mx.sqrt(mx.mean(mx.square(updated))).item() / 0.02
    expected = (max(1, rows / cols) * min(rows, cols) / (rows * cols)) ** 0.5
    assert rms == pytest.approx(expected, rel=1e-4 if variant == "current" else tolerance)


def test_zero_gradient_still_decays_everything():
    """The mask holds where update * parameter is 0: p (1 - eta wd), eta = lr sqrt(r / c)."""
    p = mx.random.normal((1, 8, 2), key=mx.random.key(0))
    zeros, second = mx.zeros(p.shape), mx.zeros((1, 8, 1))
    options = {"lr": 0.1, "momentum": 0.9, "beta2": 0.95, "weight_decay": 0.5}
    updated, _, _ = muon_update(p, zeros, zeros, second, variant="plain", **options)
    assert np.allclose(updated, np.array(p) * (1 - 0.1 * 2 * 0.5), rtol=1e-6)


def test_bfloat16_parameters_are_updated_in_float32():
    """From bfloat16 values, the result is the float32 result, rounded once."""
    tensors, facts = golden("muon_32x96")
    settings = facts["variants"]["plain"]
    rounded = {k: tensors[k].astype(mx.bfloat16).astype(mx.float32) for k in ("p0", "grad1", "grad2", "grad3")}
    exact, _, _ = next(run_steps(rounded, settings, "plain"))
    found, momentum, second = next(run_steps(rounded, settings, "plain", dtype=mx.bfloat16))
    assert (found.dtype, momentum.dtype, second.dtype) == (mx.bfloat16, mx.float32, mx.float32)
    assert mx.array_equal(found, exact.astype(mx.bfloat16))
