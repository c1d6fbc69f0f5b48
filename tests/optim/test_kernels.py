"""CUDA kernels of the optimizer against the written-out rules: NANOCHAT_TEST_DEVICE=gpu pytest -m gpu tests/optim."""

import mlx.core as mx
import numpy as np
import pytest

from nanochat.model.device import runs_kernels
from nanochat.optim.adamw import adamw_update
from nanochat.optim.fused_adamw import fused_adamw_update
from nanochat.optim.fused_muon import fused_muon_update
from nanochat.optim.gradient_sums import added, grad_norm
from nanochat.optim.muon import muon_update

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _on_a_gpu():
    assert runs_kernels(), "set NANOCHAT_TEST_DEVICE=gpu on a machine with an NVIDIA GPU"


def draw(*shape, seed=0):
    return mx.random.normal(shape, key=mx.random.key(seed))


def distance(found, expected):
    found, expected = (np.array(x.astype(mx.float32), dtype=np.float64) for x in (found, expected))
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("step", [1, 500])
@pytest.mark.parametrize("shape", [(64, 96), (13,)])
def test_adamw(dtype, step, shape):
    parameter, gradient, first = draw(*shape), draw(*shape, seed=1).astype(dtype), draw(*shape, seed=2)
    second = mx.square(draw(*shape, seed=3))
    rule = {"betas": (0.8, 0.95), "eps": 1e-10, "weight_decay": 0.1}
    old = (parameter, gradient, first, second)
    rule |= {"step": mx.array(float(step)), "lr": 0.1}
    expected = adamw_update(*old, **rule)
    found = fused_adamw_update(*old, is_finite=mx.array(True), **rule)
    for a, b in zip(found, expected, strict=True):
        assert distance(a, b) <= 1e-6
    kept = fused_adamw_update(*old, is_finite=mx.array(False), **rule)
    assert all(mx.array_equal(a, b) for a, b in zip(kept, (parameter, first, second), strict=True))


@pytest.mark.parametrize("variant", ["plain", "current"])
@pytest.mark.parametrize("shape", [(256, 128), (128, 256), (192, 192)])
def test_muon(variant, shape):
    """Float32 to its rounding through five quintics (each multiplies it by about 8); bfloat16 within some per cent."""
    parameter, gradient, first = (draw(3, *shape, seed=i) for i in range(3))
    rows, cols = shape
    second = 0.01 * mx.square(draw(3, rows, 1) if rows >= cols else draw(3, 1, cols))
    rule = {"variant": variant, "lr": 0.02, "momentum": 0.9, "beta2": 0.95, "weight_decay": 0.1}
    expected = muon_update(parameter, gradient, first, second, **rule)
    for dtype, tolerance in ((mx.float32, 1e-3), (mx.bfloat16, 0.1)):
        yes = mx.array(True)
        found = fused_muon_update(parameter, list(gradient.astype(dtype)), first, second, is_finite=yes, **rule)
        assert distance(found[0] - parameter, expected[0] - parameter) <= tolerance
        assert distance(found[1], expected[1]) <= 1e-3
        assert distance(found[2], expected[2]) <= tolerance
    kept = fused_muon_update(parameter, list(gradient), first, second, is_finite=mx.array(False), **rule)
    assert all(mx.array_equal(a, b) for a, b in zip(kept, (parameter, first, second), strict=True))


def test_plain_scales_matrices_by_a_factor_of_their_dtype():
    """Without momentum, the iteration begins with the gradient times bfloat16(1 / (1.02 norm)), rounded once more."""
    gradient = draw(3, 64, 96).astype(mx.bfloat16)
    exact = np.array(gradient.astype(mx.float32), dtype=np.float64)
    factors = 1 / (1.02 * np.sqrt(np.square(exact).sum(axis=(1, 2), keepdims=True)) + 1e-6)
    factors = np.array(mx.array(factors, mx.bfloat16).astype(mx.float32), dtype=np.float64)
    begun = []
    rule = {"variant": "plain", "lr": 0.02, "momentum": 0.0, "beta2": 0.95, "weight_decay": 0.1}
    moments = (mx.zeros((3, 64, 96)), mx.zeros((3, 1, 96)))
    fused_muon_update(
        draw(3, 64, 96, seed=1),
        list(gradient),
        *moments,
        is_finite=mx.array(True),
        orthogonalize=lambda x: begun.append(x) or x,
        **rule,
    )
    assert mx.array_equal(begun[0], mx.array(exact * factors, mx.float32).astype(mx.bfloat16))


def test_gradients_are_added_in_float32():
    gradients = [{"matrix": draw(100, 96, seed=i).astype(mx.bfloat16), "vector": draw(13, seed=i)} for i in range(3)]
    sums = {}
    for more in gradients:
        sums = added(sums, more)
    for name, total in sums.items():
        assert total.dtype == mx.float32
        assert mx.array_equal(total, sum(more[name].astype(mx.float32) for more in gradients))


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_grad_norm(dtype):
    """Arrays of one block, of several with a rest, of a few values, and one that the kernel does not take."""
    arrays = [draw(1000, 96), draw(3, 5461 * 8, seed=1), draw(1, 24, seed=2), draw(13, seed=3)]
    arrays = [*(x.astype(dtype) for x in arrays), draw(40, 32, seed=4)]
    exact = np.sqrt(sum(np.square(np.array(x.astype(mx.float32), dtype=np.float64)).sum() for x in arrays))
    assert grad_norm(arrays).item() == pytest.approx(exact, rel=1e-5)
