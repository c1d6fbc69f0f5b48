"""CUDA kernels compared with the reference, gradients included: NANOCHAT_TEST_DEVICE=gpu pytest -m gpu tests/model.

Float32 runs with 24 bits (no TF32), so sums of up to a few thousand terms agree to 1e-5; bfloat16 rounds each stored
value at 2^-9, which adds up to a few per cent of a gradient's norm over some layers, in the reference as well.
"""

import itertools

import mlx.core as mx
import numpy as np
import pytest

from nanochat.inference.kv_cache import DecodingCache, PromptCache, PromptCopy, empty_buffers, from_prompts
from nanochat.model import layers
from nanochat.model.config import SOFTCAP, GPTConfig
from nanochat.model.cuda import embedding, qkv, residual, softcap_loss, squared_relu
from nanochat.model.cuda.windows import overlapping_windows
from nanochat.model.device import runs_kernels
from nanochat.model.dispatch import FastGPT, attention, summed_loss, token_losses
from nanochat.model.layers import norm, rotate
from nanochat.model.low_memory.loss import plain_losses

pytestmark = pytest.mark.gpu

TOLERANCE = {mx.float32: 2e-5, mx.bfloat16: 1e-2}
dtypes = pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])


@pytest.fixture(autouse=True)
def _on_a_gpu():
    assert runs_kernels(), "set NANOCHAT_TEST_DEVICE=gpu on a machine with an NVIDIA GPU"


def distance(found, expected):
    found, expected = (np.array(x.astype(mx.float32), dtype=np.float64) for x in (found, expected))
    assert found.shape == expected.shape
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def draw(*shape, seed=0, dtype=mx.float32):
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


def assert_same(function, plain, arrays, dtype, others=()):
    """Values and gradients of `function` at arrays of `dtype` are those of `plain` at the same values in float32."""
    rounded = [x.astype(dtype) for x in arrays]
    exact = [x.astype(mx.float32) for x in rounded]
    outputs = plain(*exact, *others)
    cotangents = [1 + draw(*x.shape, seed=9 + i) for i, x in enumerate(outputs)]
    expected, wanted = mx.vjp(lambda *x: list(plain(*x, *others)), exact, cotangents)
    cotangents = [c.astype(o.dtype) for c, o in zip(cotangents, function(*rounded, *others), strict=True)]
    found, gradients = mx.vjp(lambda *x: list(function(*x, *others)), rounded, cotangents)
    for a, b in zip((*found, *gradients), (*expected, *wanted), strict=True):
        assert distance(a, b) <= TOLERANCE[dtype]


@dtypes
@pytest.mark.parametrize("width", [64, 768, 1280])
def test_add_norm(dtype, width):
    plain = lambda x, y: (x + y, norm(x + y, 1e-6))  # noqa: E731
    assert_same(lambda x, y: residual.add_norm(x, y, 1e-6), plain, [draw(37, width), draw(37, width, seed=1)], dtype)


@dtypes
@pytest.mark.parametrize("adds", [True, False])
def test_mix_norm(dtype, adds):
    """Both factors get gradients, and `first` gets the sum over all its uses."""
    factors = [mx.array([0.7]), mx.array([-1.3])]

    def plain(x, first, r, l, y=0):
        mixed = r * (x + y) + l * first
        return mixed, norm(mixed, 1e-6), first

    def fused(x, first, r, l, y=None):
        return residual.mix_norm(x, y, first, (r.astype(mx.float32), l.astype(mx.float32)), 1e-6)

    # All rows have the same sign, because a factor's gradient is a sum over rows and must not cancel.
    arrays = [1 + draw(37, 768), 1 + draw(37, 768, seed=1), *factors]
    assert_same(fused, plain, arrays + [draw(37, 768, seed=2)] * adds, dtype)


@dtypes
def test_squared_relu(dtype):
    plain = lambda x: (mx.square(mx.maximum(x, 0)),)  # noqa: E731
    assert_same(lambda x: (squared_relu.squared_relu(x),), plain, [draw(37, 1024)], dtype)


@dtypes
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("size", [64, 128])
def test_split_qkv(dtype, gated, size):
    """Rotation, norm, scale and gate; grouped keys; a table row used twice."""
    config = GPTConfig(n_head=4, n_kv_head=2, n_embd=4 * size, architecture="current")
    eps, base = config.variant.norm_eps, config.variant.rope_base
    idx = mx.random.randint(0, 7, (40,), key=mx.random.key(3))
    tokens = embedding.index_tokens(idx)
    width = 8 * size + qkv.GATE_PADDING * gated

    def by_head(x):
        return x.reshape(2, 20, -1, size).swapaxes(1, 2)

    def plain(projected, table=None):
        split = mx.split(projected, [4 * size, 6 * size, 8 * size], axis=1)
        done = [1.2 * norm(rotate(by_head(x), base=base, offset=0), eps).swapaxes(1, 2) for x in split[:2]]
        values = split[2].reshape(40, 2, size)
        if table is not None:
            gate = 3 * mx.sigmoid(split[3][:, :2])
            values = values + gate[..., None] * table[idx].reshape(40, 2, size)
        return *(x.reshape(40, -1) for x in done), values.reshape(40, -1)

    def fused(projected, table=None):
        return qkv.split_qkv(config, projected, table, tokens if gated else None, positions=20)

    arrays = [draw(40, width)] + [draw(7, 2 * size, seed=1)] * gated
    assert_same(fused, plain, arrays, dtype)


@dtypes
def test_embed_norm(dtype):
    """Rows of absent tokens have no gradient; most positions hold the same token."""
    idx = mx.where(mx.random.uniform(shape=(500,), key=mx.random.key(1)) < 0.6, 3, mx.arange(500) % 40)
    tokens = embedding.index_tokens(idx)

    def fused(table):
        return (embedding.embed_norm(table, tokens, eps=1e-6, dtype=dtype),)

    assert_same(fused, lambda t: (norm(t[idx], 1e-6),), [draw(64, 768)], dtype)
    gradient = mx.vjp(fused, [draw(64, 768)], [draw(500, 768).astype(dtype)])[1][0]
    assert gradient.dtype == dtype
    assert mx.all(gradient[40:] == 0).item()


def test_tables_in_float32_are_rounded_like_their_copies():
    """Embeddings, values and gradients from a float32 table are bit for bit those from its rounded copy."""
    config = GPTConfig(n_head=4, n_kv_head=2, n_embd=512)
    tokens = embedding.index_tokens(mx.random.randint(0, 7, (40,), key=mx.random.key(3)))
    projected = draw(40, 1024 + qkv.GATE_PADDING, dtype=mx.bfloat16)

    def function(table):
        split = qkv.split_qkv(config, projected, table, tokens, positions=20)
        return [embedding.embed_norm(table, tokens, eps=1e-6, dtype=mx.bfloat16), split[2]]

    table = draw(7, 256)
    cotangents = [draw(40, 256, seed=5 + i, dtype=mx.bfloat16) for i in range(2)]
    exact, rounded = (mx.vjp(function, [x], cotangents) for x in (table, table.astype(mx.bfloat16)))
    for found, expected in zip((*exact[0], *exact[1]), (*rounded[0], *rounded[1]), strict=True):
        assert found.dtype == mx.bfloat16
        assert mx.array_equal(found, expected)


@dtypes
def test_softcap_loss(dtype):
    """Loss and gradient of softcapped logits, with ignored targets and padding columns."""
    logits, targets = (20 * draw(50, 1024)).astype(dtype), mx.arange(50) * 19
    targets = mx.where(mx.arange(50) % 7 == 0, -1, targets)
    found, gradient = softcap_loss.losses_and_gradient(logits, targets, vocab_size=1000)

    def plain(x):
        return plain_losses(SOFTCAP * mx.tanh(x[:, :1000] / SOFTCAP), targets)

    exact = logits.astype(mx.float32)
    assert distance(found, plain(exact)) <= 2e-5
    assert distance(gradient, mx.grad(lambda x: plain(x).sum())(exact)) <= TOLERANCE[dtype]
    assert distance(softcap_loss.losses(logits, targets, vocab_size=1000), plain(exact)) <= 2e-5


def plain_loss(model, idx, targets):
    *_, hidden = model.residual_stream(idx)
    return plain_losses(model.logits(hidden), targets).sum()


def gradients_of(model, function, dtype, *batch):
    model.set_compute_dtype(dtype)
    parameters = model.named_parameters()

    def run(parameters):
        model.set_parameters(parameters)
        return function(model, *batch)

    value, gradients = mx.value_and_grad(run)(parameters)
    model.set_parameters(parameters)
    return value, gradients


@pytest.mark.parametrize("architecture", ["seed", "current", "portable"])
def test_whole_model(make_random_model, architecture):
    """Loss and gradients equal the reference in float32; in bfloat16 they are as near as the reference in bfloat16."""
    shape = {"sequence_len": 256, "vocab_size": 1000, "n_embd": 256}
    model = make_random_model(architecture, **shape)
    idx = mx.random.randint(0, 1000, (3, 256), key=mx.random.key(1))
    targets = mx.where(mx.arange(256) % 5 == 0, -1, mx.random.randint(0, 1000, (3, 256), key=mx.random.key(2)))
    exact, wanted = gradients_of(model, plain_loss, mx.float32, idx, targets)
    value, gradients = gradients_of(model, summed_loss, mx.float32, idx, targets)
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)
    for name, gradient in gradients.items():
        assert distance(gradient, wanted[name]) <= 1e-3, name
    rounded, of_plain = gradients_of(model, plain_loss, mx.bfloat16, idx, targets)
    value, gradients = gradients_of(model, summed_loss, mx.bfloat16, idx, targets)
    assert abs(value.item() - exact.item()) <= max(2 * abs(rounded.item() - exact.item()), 1e-3 * exact.item())
    for name, gradient in gradients.items():
        assert distance(gradient, wanted[name]) <= max(2 * distance(of_plain[name], wanted[name]), 0.05), name


def test_token_losses_on_the_gpu(make_random_model):
    """The losses per position equal the written-out form."""
    model = make_random_model("seed", vocab_size=1000)
    idx = mx.random.randint(0, 1000, (2, 32), key=mx.random.key(1))
    found = token_losses(model, idx, idx)
    assert distance(found, plain_losses(model(idx), idx)) <= 1e-4


def test_windowed_attention_in_bfloat16():
    """Windows of a quarter and half of the context, at the real head size, equal the reference in float32."""
    arrays = [draw(2, 2, 1024, 128, seed=i, dtype=mx.bfloat16) for i in range(3)]
    for window in (256, 512):
        plain = lambda *x: (layers.attention(*x, window=window),)  # noqa: B023, E731
        assert_same(lambda *x: (attention(*x, window=window),), plain, arrays, mx.bfloat16)  # noqa: B023


@dtypes
def test_overlapping_windows(dtype):
    """The gradient of a position is the sum over the windows that contain it."""
    cut = ((0, 4), (2, 6), (4, 8))
    plain = lambda x: tuple(x[:, first:end] for first, end in cut)  # noqa: E731
    assert_same(lambda x: overlapping_windows(x, cut), plain, [draw(3, 8, 2, 32)], dtype)


def test_the_real_shape_runs():
    """One layer at width 768 and T=2048 has an initial loss near ln(vocabulary)."""
    config = GPTConfig(n_layer=1)
    model = FastGPT(config)
    model.initialise(mx.random.key(0))
    model.set_compute_dtype(mx.bfloat16)
    idx = mx.random.randint(0, config.vocab_size, (2, 2048), key=mx.random.key(1))
    mean = summed_loss(model, idx, idx).item() / idx.size
    assert mean == pytest.approx(np.log(config.vocab_size), rel=0.02)


@pytest.mark.parametrize("architecture", ["seed", "current", "portable"])
def test_decoding_through_the_kernels(make_random_model, architecture):
    """Chunks and single tokens through a cache give the reference's hidden states, with fused weights or without."""
    model = make_random_model(architecture, sequence_len=64, vocab_size=1000, n_embd=256)
    idx = mx.random.randint(0, 1000, (3, 64), key=mx.random.key(1))
    *_, expected = model.residual_stream(idx)
    for _ in range(2):
        prompts = PromptCache(model.config)
        cuts = [0, 5, 6, 7, 30]
        parts = [model.hidden(idx[:, first:end], prompts) for first, end in itertools.pairwise(cuts)]
        buffers = empty_buffers(model.config, 3, 64, mx.float32)
        buffers = from_prompts(prompts, buffers, [PromptCopy(row, row, 30) for row in range(3)])
        cache = DecodingCache(buffers, mx.array([30, 30, 30]), idx[:, 29])
        parts += [model.hidden(idx[:, i : i + 1], cache) for i in range(30, 64)]
        assert distance(mx.concatenate(parts, axis=1), expected) <= 1e-5
        model.cast_matrices(mx.float32)
        assert model.fused_qkv


@pytest.mark.parametrize("rows", [1, 9, 32])
@pytest.mark.parametrize("architecture", ["seed", "current", "portable"])
def test_decoding_kernels_are_as_exact_as_the_plain_form(make_random_model, architecture, rows):
    """In bfloat16, single tokens give logits that are at least as close to those in float32."""
    shape = {"sequence_len": 200, "vocab_size": 1000, "n_embd": 256, "n_head": 2, "n_kv_head": 1}
    model, exact = (make_random_model(architecture, **shape) for _ in range(2))
    model.set_compute_dtype(mx.bfloat16)
    model.cast_matrices(mx.bfloat16)
    exact.set_parameters({name: x.astype(mx.float32) for name, x in model.named_parameters().items()})
    idx = mx.random.randint(0, 1000, (rows, 150), key=mx.random.key(1))
    expected, errors = exact(idx), {}
    for name in ("plain", "fast"):
        start = mx.zeros((rows,), mx.int32)
        cache = DecodingCache(empty_buffers(model.config, rows, 150, mx.bfloat16), start, start - 1)
        logits = []
        for tokens in idx.T:
            plain = model.logits(model.hidden(tokens[:, None], cache)[:, -1]) if name == "plain" else None
            logits.append(model.next_logits(tokens, cache, vocab_size=1000) if plain is None else plain)
            mx.eval(logits, cache.buffers)
        errors[name] = distance(mx.stack(logits, axis=1), expected)
    assert errors["fast"] <= errors["plain"] <= 0.1
