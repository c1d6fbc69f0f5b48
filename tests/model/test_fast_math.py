"""exp and tanh compared with NumPy in float64."""

import mlx.core as mx
import numpy as np

from nanochat.model.cpu import fast_math


def relative_error(found, expected):
    return np.abs(np.array(found, dtype=np.float64) / expected - 1).max()


def test_exp_of_a_scaled_argument():
    """The error is a few units in the last place; the rounding of the argument grows with its size."""
    for bound, scale, tolerance in ((1, 1.0, 2e-7), (16, 1.0, 1.2e-6), (80, 1.0, 6e-6), (1, 15.0, 2e-6)):
        x = np.linspace(-bound, bound, 200_001, dtype=np.float32)
        assert relative_error(fast_math.exp(mx.array(x), scale), np.exp(scale * x.astype(np.float64))) < tolerance


def test_tanh():
    """Also where tanh(x) is almost x, and where it is 1."""
    for bound in (1e-6, 0.1, 3, 20):
        x = np.linspace(-bound, bound, 200_000, dtype=np.float32)
        assert relative_error(fast_math.tanh(mx.array(x)), np.tanh(x.astype(np.float64))) < 5e-7
