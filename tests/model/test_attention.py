"""Every implementation of attention equals the reference, in values and in gradients."""

import mlx.core as mx
import numpy as np
import pytest

from nanochat.model import fused_attention as fused_module
from nanochat.model import layers
from nanochat.model.cpu.attention import FORM
from nanochat.model.dispatch import attention
from nanochat.model.fused_attention import fused_attention, overlapping_block_attention
from nanochat.model.low_memory.block_attention import PLAIN, block_attention

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
    assert_close(layers.attention(q, k, v, window=window), numpy_attention(q, k, v, window))


@pytest.mark.parametrize("window", [0, 5, 64, 100, 200])
@pytest.mark.parametrize("shape", [(1, 40), (7, 90), (64, 64), (130, 150), (200, 200)])
def test_dispatched_attention_equals_the_reference(shape, window):
    """On this device, with grouped heads and the largest scale of q and k."""
    q, k, v = inputs(*shape, groups=2, scale=1.2)
    assert_close(attention(q, k, v, window=window), layers.attention(q, k, v, window=window))


def assert_same_gradients(function, window, q, k, v):
    weights = mx.random.normal(q.shape, key=mx.random.key(9))
    found, expected = (
        mx.grad(lambda *x: (attend(*x, window=window) * weights).sum(), argnums=(0, 1, 2))(q, k, v)  # noqa: B023
        for attend in (function, layers.attention)
    )
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)


FORMS = {"mlx": PLAIN._replace(block_queries=64), "cpu": FORM}


def blocks_of(form):
    return lambda q, k, v, *, window: block_attention(q, k, v, window=window, form=form)


@pytest.mark.parametrize("window", [1, 5, 64, 100, 200])
@pytest.mark.parametrize("shape", [(7, 90), (64, 64), (130, 150), (200, 200)])
@pytest.mark.parametrize(("form", "groups"), [("mlx", 4), ("mlx", 2), ("mlx", 1), ("cpu", 4), ("cpu", 2)])
def test_block_attention_equals_the_reference(form, groups, shape, window):
    """Values and gradients, with one block and with several, whole ones and parts, and with grouped heads."""
    q, k, v = inputs(*shape, groups=groups, scale=1.2, head_dim=32)
    attend = blocks_of(FORMS[form])
    assert_close(attend(q, k, v, window=window), layers.attention(q, k, v, window=window))
    assert_same_gradients(attend, window, q, k, v)


@pytest.mark.parametrize(("length", "window"), [(384, 128), (512, 256), (768, 384)])
def test_overlapping_blocks_equal_the_reference(length, window, monkeypatch):
    """Values and gradients without our kernels: several blocks as long as the window or half of it, and one block."""
    monkeypatch.setattr(fused_module, "runs_kernels", lambda: False)
    q, k, v = inputs(length, length, heads=2, groups=1, head_dim=32, scale=1.2)
    expected = layers.attention(q, k, v, window=window)
    assert_close(overlapping_block_attention(q, k, v, window=window), expected)
    assert_same_gradients(overlapping_block_attention, window, q, k, v)


@pytest.mark.parametrize("form", FORMS)
def test_block_attention_stays_finite_at_the_largest_score(form):
    """Equal normed queries and keys in heads of 256 have the largest score, sqrt(256) * 1.44."""
    x = normed((1, 1, 1, 256), 0, scale=1.2)
    q = mx.broadcast_to(x, (1, 1, 65, 256)) * 1.0
    v = mx.random.normal((1, 1, 65, 256), key=mx.random.key(1))
    attend = blocks_of(FORMS[form])
    assert_close(attend(q, q, v, window=64), layers.attention(q, q, v, window=64))


@pytest.mark.cpu
@pytest.mark.parametrize("form", [PLAIN, FORM], ids=["mlx", "cpu"])
@pytest.mark.parametrize("window", [300, 2048])
def test_block_attention_never_holds_all_scores(form, window):
    """Its peak, gradients included, is less than all scores take, and grows with the length, not with its square."""

    def peak(length):
        qkv = [normed((1, 2, length, 16), seed) for seed in range(3)]
        mx.eval(qkv)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(mx.grad(lambda *x: blocks_of(form)(*x, window=window).sum(), argnums=(0, 1, 2))(*qkv))
        return mx.get_peak_memory() - before

    short, long = peak(1024), peak(2048)
    assert long < 4 * 2 * 2048 * 2048
    assert long < 3 * short, "the scores of all queries and keys would take four times as much"


def test_bfloat16_gradients_of_block_attention_are_as_close_as_those_of_the_reference():
    """Both round scores and weights to 8 bits, so each is within a few per cent of float32 on the whole."""
    exact = inputs(200, 200, groups=2, head_dim=32)
    rough = [x.astype(mx.bfloat16) for x in exact]
    weights = mx.random.normal(exact[0].shape, key=mx.random.key(9))

    def gradients(attend, arguments):
        loss = lambda *x: (attend(*x, window=100) * weights.astype(x[0].dtype)).sum()  # noqa: E731
        return mx.grad(loss, argnums=(0, 1, 2))(*arguments)

    for right, found, plain in zip(
        gradients(layers.attention, exact),
        gradients(blocks_of(FORMS["mlx"]), rough),
        gradients(layers.attention, rough),
        strict=True,
    ):
        assert found.dtype == mx.bfloat16
        error, usual = (mx.linalg.norm(x.astype(mx.float32) - right).item() for x in (found, plain))
        assert error < 1.2 * usual
        assert error < 0.02 * mx.linalg.norm(right).item()


@pytest.mark.parametrize("shape", [(1, 40), (7, 40), (40, 40)])
@pytest.mark.parametrize("window", [10, 39, 60])
def test_fused_attention(shape, window):
    """Every branch that a GPU takes gives the reference's result, computed here on the CPU."""
    q, k, v = inputs(*shape, groups=2)
    assert_close(fused_attention(q, k, v, window=window), layers.attention(q, k, v, window=window))
