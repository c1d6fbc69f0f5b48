"""Cached logits equal uncached logits, on models with random weights."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.inference.kv_cache import KVCache, pad_left
from nanochat.model.config import GPTConfig
from nanochat.model.dispatch import FastGPT

TOLERANCE = 1e-4  # float32, logits of size up to 15
ARCHITECTURES = ["seed", "current", "portable"]
SEQUENCE_LEN = {"seed": 24, "current": 384, "portable": 24}  # short windows of 12 and of 128


@pytest.fixture(scope="module")
def make_model(make_random_model):
    def make(architecture, **shape):
        shape = {"n_layer": 3, "vocab_size": 90, "window_pattern": "SSL"} | shape
        return make_random_model(architecture, sequence_len=SEQUENCE_LEN[architecture], **shape)

    return make


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request, make_model):
    return make_model(request.param)


def tokens(rows, length, seed=0):
    return mx.random.randint(0, 90, (rows, length), key=mx.random.key(seed))


def feed(model, idx, cache, sizes):
    """Return the logits of idx, processed in chunks of the given sizes."""
    pieces, start = [], 0
    for size in sizes:
        pieces.append(model(idx[:, start : start + size], cache))
        start += size
    assert start == idx.shape[1]
    return mx.concatenate(pieces, axis=1)


def assert_equal(found, expected):
    assert found.shape == expected.shape
    assert np.abs(np.array(found) - np.array(expected)).max() <= TOLERANCE


@pytest.mark.parametrize("rows", [1, 3])
def test_cached_prefill_equals_uncached(model, rows):
    """The prompt is processed at once, within the context and beyond it."""
    for length in (model.config.sequence_len, model.config.sequence_len + 40):
        idx = tokens(rows, length)
        assert_equal(model(idx, KVCache(model.config, capacity=length)), model(idx))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("n_kv_head", [1, 4])
def test_cached_decoding_beyond_the_window_equals_uncached(make_model, architecture, n_kv_head):
    """The model has one key head, or as many as query heads."""
    model = make_model(architecture, n_kv_head=n_kv_head)
    length = 24 if architecture == "seed" else 150
    idx = tokens(2, length)
    assert_equal(feed(model, idx, KVCache(model.config, capacity=length), [1] * length), model(idx))


@settings(max_examples=5, deadline=None, derandomize=True)
@given(data=st.data())
def test_cached_chunks_of_any_size_equal_uncached(model, data):
    """Chunks are shorter and longer than the window and its slack."""
    length = 3 * model.config.sequence_len // 2
    sizes = []
    while sum(sizes) < length:
        sizes.append(min(data.draw(st.sampled_from([1, 5, 13, 40, 130, 300])), length - sum(sizes)))
    idx = tokens(2, length, seed=len(sizes))
    assert_equal(feed(model, idx, KVCache(model.config, capacity=length), sizes), model(idx))


def test_cache_moves_the_window_to_the_front_of_a_full_buffer(make_model):
    """Small chunks fill the buffer of a windowed layer several times."""
    model = make_model("seed")
    idx = tokens(1, 900)
    sizes = [7] * 128 + [4]
    cache = KVCache(model.config, capacity=900)
    assert_equal(feed(model, idx, cache, sizes), model(idx))
    assert cache.layers[0].keys.shape[2] == 12 + 256
    assert cache.offset == 900


def test_cache_of_one_prompt_is_expanded_to_several_rows(model):
    """The rows continue with different tokens. Rows that leave change neither the others nor the first cache."""
    length = 20
    prompt, own = tokens(1, length), tokens(4, 8, seed=3)
    cache = KVCache(model.config, capacity=length + 8)
    model(prompt, cache)
    whole, cache = cache, cache.take([0] * 4)
    uncached = model(mx.concatenate([mx.repeat(prompt, 4, axis=0), own], axis=1))[:, length:]
    assert_equal(model(own[:, :3], cache), uncached[:, :3])
    cache = cache.take([3, 1])
    rows = mx.array([3, 1])
    assert_equal(model(own[rows, 3:], cache), uncached[rows, 3:])
    assert_equal(model(own, whole.take([0] * 4)), uncached)


def test_cache_pads_prompts_of_different_lengths(model):
    """The logits of each row are those of its prompt alone, also after rows have left the batch."""
    lengths = [17, 5, 1, 11]
    prompts = [tokens(1, n, seed=n)[0].tolist() for n in lengths]
    own = tokens(4, 9, seed=99)
    cache = KVCache(model.config, capacity=26, lengths=lengths)
    prefill = model(pad_left(prompts, pad_id=0), cache)
    decoded = [model(own[:, i : i + 1], cache) for i in range(6)]
    cache = cache.take([2, 0])
    rest = model(own[mx.array([2, 0]), 6:], cache)
    for row, prompt in enumerate(prompts):
        alone = model(mx.array([prompt + own[row].tolist()]))[0]
        n = len(prompt)
        assert_equal(prefill[row, 17 - n :], alone[:n])
        assert_equal(mx.concatenate(decoded, axis=1)[row], alone[n : n + 6])
    for position, row in enumerate([2, 0]):
        alone = model(mx.array([prompts[row] + own[row].tolist()]))[0]
        assert_equal(rest[position], alone[-3:])


def test_cache_buffers_have_a_fixed_size():
    """Windowed layers have room for their window and a slack, the others for the capacity."""
    config = GPTConfig(sequence_len=2048, n_layer=4, n_head=1, n_kv_head=1, n_embd=32, vocab_size=90)
    model = FastGPT(config)
    cache = KVCache(config, capacity=2000)
    model(tokens(1, 40), cache)
    for _ in range(2):
        assert [layer.keys.shape for layer in cache.layers] == [(1, 1, 1024 + 256, 32)] * 3 + [(1, 1, 2000, 32)]
        assert [layer.values.shape for layer in cache.layers] == [layer.keys.shape for layer in cache.layers]
        model(tokens(1, 1), cache)


def test_cache_refuses_more_positions_than_its_capacity(make_model):
    """A layer with a window larger than the capacity must not drop keys silently."""
    model = make_model("current")
    cache = KVCache(model.config, capacity=8)
    with pytest.raises(AssertionError, match="room for 8 positions only"):
        model(tokens(1, 9), cache)
