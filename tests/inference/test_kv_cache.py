"""Cached logits equal uncached logits, on models with random weights."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.inference.batch_sizes import buffer_size, decoding_rows
from nanochat.inference.kv_cache import (
    Buffers,
    DecodingCache,
    PromptCache,
    PromptCopy,
    empty_buffers,
    from_prompts,
    grow,
    take_rows,
)
from nanochat.model.config import GPTConfig

TOLERANCE = 1e-4  # float32, logits of size up to 15
VARIANTS = ["seed", "current", "portable"]
SEQUENCE_LEN = {"seed": 24, "current": 384, "portable": 24}  # short windows of 12 and of 128


@pytest.fixture(scope="module")
def make_model(make_random_model):
    def make(architecture, **shape):
        shape = {
            "n_layer": 3,
            "vocab_size": 90,
            "window_pattern": "SSL",
            "sequence_len": SEQUENCE_LEN[architecture],
        } | shape
        model = make_random_model(architecture, **shape)
        model.cast_matrices(mx.float32)  # as inference does: some devices decode with other kernels then
        return model

    return make


@pytest.fixture(scope="module", params=VARIANTS)
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


@pytest.fixture(params=["plain", "fast"])
def decode(request):
    """A function that decodes idx one position at a time and returns its logits, and the buffers afterwards."""

    def plain(model, tokens, cache):
        return model(tokens[:, None], cache)[:, 0]

    def fast(model, tokens, cache):
        return model.next_logits(tokens, cache, vocab_size=model.config.vocab_size)

    def decode(model, buffers, positions, newest, idx):
        cache = DecodingCache(buffers, mx.array(positions), mx.array(newest))
        logits = []
        for column in idx.T:
            logits.append((plain if request.param == "plain" else fast)(model, column, cache))
            mx.eval(logits, cache.buffers)
        return mx.stack(logits, axis=1), cache.buffers

    return decode


def assert_equal(found, expected):
    assert found.shape == expected.shape
    assert np.abs(np.array(found) - np.array(expected)).max() <= TOLERANCE


@pytest.mark.usefixtures("_each_path")
@pytest.mark.parametrize("rows", [1, 3])
def test_cached_prompts_equal_uncached(model, rows):
    """The prompt is processed at once, within the context and beyond it."""
    for length in (model.config.sequence_len, model.config.sequence_len + 40):
        idx = tokens(rows, length)
        assert_equal(model(idx, PromptCache(model.config)), model(idx))


@settings(max_examples=5, deadline=None, derandomize=True)
@given(data=st.data())
def test_cached_chunks_of_any_size_equal_uncached(model, data):
    """Chunks are shorter and longer than the window."""
    length = 3 * model.config.sequence_len // 2
    sizes = []  # the first size is that of the simplest example
    while sum(sizes) < length:
        sizes.append(min(data.draw(st.sampled_from([40, 13, 130, 5, 300, 1])), length - sum(sizes)))
    idx = tokens(2, length, seed=len(sizes))
    assert_equal(feed(model, idx, PromptCache(model.config), sizes), model(idx))


@pytest.mark.usefixtures("_each_path")
@pytest.mark.parametrize("architecture", VARIANTS)
@pytest.mark.parametrize("n_kv_head", [1, 4])
def test_decoding_beyond_the_window_equals_uncached(make_model, architecture, n_kv_head, decode):
    """Rows fill the rings of windowed layers, from the start where these are short, else after most of a window.

    There is one key head, or as many as query heads.
    """
    model = make_model(architecture, n_kv_head=n_kv_head)
    length, start = (136, 120) if architecture == "current" else (24, 0)
    idx = tokens(2, length)
    buffers, newest = empty_buffers(model.config, 2, length, mx.float32), [-1, -1]
    if start:
        model(idx[:, :start], cache := PromptCache(model.config))
        buffers = from_prompts(cache, buffers, [PromptCopy(row, row, start) for row in range(2)])
        newest = idx[:, start - 1].tolist()
    found, _ = decode(model, buffers, [start, start], newest, idx[:, start:])
    assert_equal(found, model(idx)[:, start:])


def test_rows_of_different_lengths_decode_as_if_alone(model, decode):
    """Prompts that are shorter and longer than the short window are padded. One is empty, and two rows share one."""
    sources, lengths = [0, 1, 2, 3, 1], [17, 5, 0, 13, 5]
    prompts, own = tokens(4, 17, seed=1), tokens(5, 7, seed=99)
    cache = PromptCache(model.config)
    model(prompts, cache)
    buffers = empty_buffers(model.config, 6, 24, mx.float32)
    rows = [4, 0, 3, 1, 5]
    filled = from_prompts(cache, buffers, list(map(PromptCopy, sources, rows, lengths)))
    buffers = [Buffers(*(take_rows(x, rows) for x in layer)) for layer in filled]
    prompts = prompts[mx.array(sources)]
    newest = [prompts[row, n - 1].item() if n else -1 for row, n in enumerate(lengths)]
    found, _ = decode(model, buffers, lengths, newest, own)
    for row, n in enumerate(lengths):
        alone = model(mx.concatenate([prompts[row : row + 1, :n], own[row : row + 1]], axis=1))
        assert_equal(found[row], alone[0, n:])


def test_buffers_grow_while_rows_decode(make_model, decode):
    """Buffers that already are rings stay as they are, and all keep what they hold."""
    model = make_model("seed", sequence_len=600)  # windows of 300 and 600
    idx = tokens(1, 530)
    cache = PromptCache(model.config)
    model(idx[:, :250], cache)
    buffers = empty_buffers(model.config, 1, 250, mx.float32)
    assert [layer.keys.shape[2] for layer in buffers] == [256, 256, 256]
    buffers = from_prompts(cache, buffers, [PromptCopy(0, 0, 250)])
    found, start = [], 250
    for end, sizes in ((256, [256, 256, 256]), (512, [301, 301, 512]), (530, [301, 301, 601])):
        buffers = grow(model.config, buffers, end)
        assert [layer.keys.shape[2] for layer in buffers] == sizes
        logits, buffers = decode(model, buffers, [start], [idx[0, start - 1].item()], idx[:, start:end])
        found.append(logits)
        start = end
    assert_equal(mx.concatenate(found, axis=1), model(idx)[:, 250:])


@given(st.integers(1, 300))
def test_batches_have_few_sizes_and_at_most_half_as_many_empty_rows(count):
    size = decoding_rows(count)
    assert count <= size <= 1.5 * count
    assert size & (size - 1) == 0 or size % 3 == 0
    assert decoding_rows(size) == size


def test_windowed_layers_keep_their_window_and_the_position_itself():
    config = GPTConfig(sequence_len=2048, n_layer=4, n_head=1, n_kv_head=1, n_embd=32, vocab_size=90)
    sizes = [buffer_size(window, 2000) for window in config.windows]
    assert sizes == [1025, 1025, 1025, 2048]


@pytest.mark.parametrize("rows", [[0], [3], [1, 2], [0, 1, 2, 3], [3, 1], [0, 2, 3, 1]])
def test_take_rows_copies_rows_in_this_order(rows):
    x = mx.arange(24).reshape(4, 3, 2)
    assert take_rows(x, rows).tolist() == [x.tolist()[row] for row in rows]


@pytest.mark.parametrize(
    "pairs",
    [
        [(0, 2), (1, 3), (2, 4)],  # one slice
        [(0, 0), (0, 1), (0, 2), (1, 3), (1, 4)],  # shared prompts
        [(1, 4), (0, 5), (2, 0), (2, 1), (0, 2), (1, 3)],
        [(0, 0), (1, 1), (1, 2), (2, 3)],
    ],
)
def test_prompts_go_to_their_rows(pairs):
    config = GPTConfig(sequence_len=24, n_layer=1, n_head=1, n_kv_head=1, n_embd=16, vocab_size=90, window_pattern="L")
    cache = PromptCache(config)
    prompts = mx.random.normal((3, 1, 5, 16), key=mx.random.key(0))
    cache.layers[0].keys, cache.layers[0].values = prompts, 2 * prompts
    filled = from_prompts(cache, empty_buffers(config, 6, 24, mx.float32), [PromptCopy(*pair, 5) for pair in pairs])
    expected = np.zeros(filled[0].keys.shape, np.float32)
    for source, row in pairs:
        expected[row, :, :5] = np.array(prompts[source])
    assert (np.array(filled[0].keys) == expected).all() and (np.array(filled[0].values) == 2 * expected).all()
