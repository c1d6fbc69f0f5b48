"""Every implementation of attention equals the reference, in values and in gradients."""

import mlx.core as mx
import numpy as np
import pytest

from nanochat.model import gpt
from nanochat.model.cpu.attention import cpu_attention
from nanochat.model.dispatch import attention
from nanochat.model.fused_attention import blocked_attention, fused_attention

TOLERANCE = 1e-5  # float32: sums of a few hundred products, of the largest value


def normed(shape, seed, scale=1.0):
    x = mx.random.normal(shape, key=mx.random.key(seed))
    return scale * mx.fast.rms_norm(x, None, 1e-6)


def inputs(length, size, *, heads=4, groups=4, head_dim=16, scale=1.0):
    """Return queries and keys as large as the norm and the factor 1.2 make them, and arbitrary values."""
    queries = normed((2, heads, length, head_dim), 0, scale)
    keys = normed((2, groups, size, head_dim), 1, scale)
    return queries, keys, 3 * mx.random.normal((2, groups, size, head_dim), key=mx.random.key(2))


def assert_close(found, expected):
    assert found.shape == expected.shape
    difference = np.abs(np.array(found) - np.array(expected)).max()
    assert difference <= TOLERANCE * np.abs(np.array(expected)).max()


def numpy_attention(queries, keys, values, window):
    """Attention as a loop over queries in float64."""
    q, k, v = (np.array(x, dtype=np.float64) for x in (queries, keys, values))
    groups, before = q.shape[1] // k.shape[1], k.shape[2] - q.shape[2]
    out = np.zeros(q.shape)
    for b, h, i in np.ndindex(*q.shape[:3]):
        seen = slice(max(0, before + i - window), before + i + 1)
        scores = k[b, h // groups, seen] @ q[b, h, i] / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        out[b, h, i] = weights / weights.sum() @ v[b, h // groups, seen]
    return out


@pytest.mark.parametrize("window", [0, 5, 63, 64, 200])
@pytest.mark.parametrize("shape", [(1, 1), (70, 70), (1, 33), (7, 90), (130, 150)])
def test_reference_attention_equals_a_loop(shape, window):
    """The queries are the newest positions; heads are grouped."""
    q, k, v = inputs(*shape, groups=2)
    assert_close(gpt.attention(q, k, v, window=window), numpy_attention(q, k, v, window))


@pytest.mark.parametrize("window", [0, 5, 64, 100, 200])
@pytest.mark.parametrize("shape", [(1, 40), (7, 90), (64, 64), (130, 150), (200, 200)])
def test_dispatched_attention_equals_the_reference(shape, window):
    """On this device, with grouped heads and the largest scale of q and k."""
    q, k, v = inputs(*shape, groups=2, scale=1.2)
    assert_close(attention(q, k, v, window=window), gpt.attention(q, k, v, window=window))


def assert_same_gradients(function, window, q, k, v):
    weights = mx.random.normal(q.shape, key=mx.random.key(9))
    found, expected = (
        mx.grad(lambda *x: (attend(*x, window=window) * weights).sum(), argnums=(0, 1, 2))(q, k, v)  # noqa: B023
        for attend in (function, gpt.attention)
    )
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("window", [1, 5, 64, 100, 200])
@pytest.mark.parametrize("shape", [(7, 90), (64, 64), (130, 150), (200, 200)])
def test_cpu_attention_has_the_reference_gradients(shape, window):
    assert_same_gradients(cpu_attention, window, *inputs(*shape, scale=1.2, head_dim=32))


def test_cpu_attention_stays_finite_at_the_largest_score():
    """Equal normed queries and keys in heads of 256 have the largest score, sqrt(256) * 1.44."""
    x = normed((1, 1, 1, 256), 0, scale=1.2)
    q = mx.broadcast_to(x, (1, 1, 65, 256)) * 1.0
    v = mx.random.normal((1, 1, 65, 256), key=mx.random.key(1))
    assert_close(cpu_attention(q, q, v, window=64), gpt.attention(q, q, v, window=64))


@pytest.mark.parametrize("window", [1, 8, 32, 50])
@pytest.mark.parametrize("length", [64, 100])
def test_blocked_attention_equals_the_reference(length, window):
    """Values and gradients, for windows that divide the length and windows that do not, with grouped heads."""
    q, k, v = inputs(length, length, groups=2)
    assert_close(blocked_attention(q, k, v, window=window), gpt.attention(q, k, v, window=window))
    assert_same_gradients(blocked_attention, window, q, k, v)


@pytest.mark.parametrize("shape", [(1, 40), (7, 40), (40, 40)])
@pytest.mark.parametrize("window", [10, 39, 60])
def test_fused_attention(shape, window):
    """Every branch that a GPU takes gives the reference's result, computed here on the CPU."""
    q, k, v = inputs(*shape, groups=2)
    assert_close(fused_attention(q, k, v, window=window), gpt.attention(q, k, v, window=window))
