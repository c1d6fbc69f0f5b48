"""Attention over a window of previous positions: one function chooses the form for the backend.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys (S >= T), D head size. The queries are always the
newest positions: query i stands at key S - T + i. Scores are scaled by D^-0.5. Not here: projections, rotation, norms
(`layers`).
"""

from __future__ import annotations

import functools
from typing import Literal

import mlx.core as mx

from nanochat.model.cpu.attention import cpu_attention, cpu_masked_attention
from nanochat.model.cuda.launch import runs_kernels
from nanochat.model.cuda.windows import spans_of
from nanochat.model.device import runs_on_cpu

_MIN_CPU_QUERIES = 16
"""Below it, the CPU's own form costs more in operations than it saves in exponentials."""
_MOST_MASKED_SCORES = 2**20
"""The CPU's form under a mask holds all scores of a head at once, several times over."""
_FUSED_MULTIPLE, _FUSED_HEAD_SIZE = 128, 128
"""What cuDNN's fused attention takes: queries in multiples, with gradients, and heads of at most that size."""
_MAX_BLOCKS = 4
"""Blocks behind the first: each is a launch of its own."""


def attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    *,
    window: int,
    starts: mx.array | None = None,
) -> mx.array:
    """Return softmax(q k / sqrt(D)) v over the keys that each query may see, (B, H, T, D) in the queries' dtype.

    Args:
        queries: (B, H, T, D), normed.
        keys: (B, G, S, D), normed, G a divisor of H; query head j reads key head j // (H / G).
        values: (B, G, S, D).
        window: how many positions before its own a query sees.
        starts: (B,) index of the first key that row b may see (left padding); None where rows are whole.
    """
    length, size = queries.shape[2], keys.shape[2]
    scale = queries.shape[-1] ** -0.5
    has_cpu_form = runs_on_cpu() and queries.dtype == mx.float32 and length >= _MIN_CPU_QUERIES
    if starts is not None:
        mask = visible(length, size, window=window, starts=starts)
        if has_cpu_form and queries.shape[0] * length * size <= _MOST_MASKED_SCORES:
            keys, values = _repeat_heads(keys, queries), _repeat_heads(values, queries)
            return cpu_masked_attention(queries, keys, values, mask)
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)
    if length == 1 and size <= window + 1:
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale)
    if has_cpu_form:
        keys, values = _repeat_heads(keys, queries), _repeat_heads(values, queries)
        return cpu_attention(queries, keys, values, window=window)
    if size <= window + 1:
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask="causal")
    if length == size and _spans_fit(queries, window):
        return spanned_attention(queries, keys, values, window=window)
    if length == size and window > 0:
        return blocked_attention(queries, keys, values, window=window)
    mask = visible(length, size, window=window)
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)


def blocked_attention(queries: mx.array, keys: mx.array, values: mx.array, *, window: int) -> mx.array:
    """Return the same as `attention` where T = S > window > 0, by blocks of the window's length.

    The first block is causal; each later one sees its own block and the one before, through one mask for all of them.
    The mask is added, not boolean: on CUDA a boolean one leaves the fused path. Positions are cut and joined where they
    stand outermost in memory, (B, T, H, D), as the projections leave them.
    """
    scale, length = queries.shape[-1] ** -0.5, queries.shape[2]
    queries, keys, values = (x.swapaxes(1, 2) for x in (queries, keys, values))
    leading, following = mx.split(queries, [window], axis=1)
    first = _attend(leading, keys[:, :window], values[:, :window], scale=scale, mask="causal")
    padding = -length % window  # later keys, which no real query sees
    if padding:
        following, keys, values = (mx.pad(x, [(0, 0), (0, padding), (0, 0), (0, 0)]) for x in (following, keys, values))
    rest = _attend(
        following.reshape(-1, window, *following.shape[2:]),
        _with_block_before(keys, window),
        _with_block_before(values, window),
        scale=scale,
        mask=_band(window, window, queries.dtype),
    )
    rest = rest.reshape(following.shape)
    return mx.concatenate([first, rest], axis=1)[:, :length].swapaxes(1, 2)


def spanned_attention(queries: mx.array, keys: mx.array, values: mx.array, *, window: int) -> mx.array:
    """Return the same as `blocked_attention`, on CUDA: each block reads its keys in place, none is copied."""
    length, scale = queries.shape[2], queries.shape[-1] ** -0.5
    block = _block(length, window)
    starts = range(window, length, block)
    own = ((0, window), *((start, start + block) for start in starts))
    seen = ((0, window), *((start - window, start + block) for start in starts))
    parts = (spans_of(x.swapaxes(1, 2), spans) for x, spans in ((queries, own), (keys, seen), (values, seen)))
    mask = _band(block, window, queries.dtype)
    blocks = [
        _attend(*of_block, scale=scale, mask=mask if i else "causal")
        for i, of_block in enumerate(zip(*parts, strict=True))
    ]
    return mx.concatenate(blocks, axis=1).swapaxes(1, 2)


def _spans_fit(queries: mx.array, window: int) -> bool:
    """Return whether CUDA's fused attention, gradient included, takes the blocks."""
    is_fused = runs_kernels() and queries.dtype == mx.bfloat16 and queries.shape[-1] <= _FUSED_HEAD_SIZE
    if not is_fused or window == 0 or window % _FUSED_MULTIPLE != 0:
        return False
    return (queries.shape[2] - window) % _block(queries.shape[2], window) == 0


def _block(length: int, window: int) -> int:
    """Return how many queries a block has: half a window, for less masked waste, where that makes few."""
    half = window // 2
    return half if half % _FUSED_MULTIPLE == 0 and length - window <= _MAX_BLOCKS * half else window


@functools.lru_cache(maxsize=8)
def _band(length: int, window: int, dtype: mx.Dtype) -> mx.array:
    """Return what is added to scores of `length` queries over the keys from `window` before the first: 0 or -inf."""
    seen = visible(length, window + length, window=window)
    return mx.where(seen, mx.array(0, dtype), mx.array(-mx.inf, dtype))[None, None]


def plain_attention(
    queries: mx.array, keys: mx.array, values: mx.array, *, window: int, starts: mx.array | None = None
) -> mx.array:
    """Return the same as `attention`, written out: the reference for every other form."""
    keys, values = _repeat_heads(keys, queries), _repeat_heads(values, queries)
    scores = (queries @ keys.swapaxes(-1, -2)).astype(mx.float32) * queries.shape[-1] ** -0.5
    mask = visible(queries.shape[2], keys.shape[2], window=window, starts=starts)
    weights = mx.softmax(mx.where(mask, scores, -mx.inf), axis=-1)
    return weights.astype(values.dtype) @ values


def visible(length: int, size: int, *, window: int, starts: mx.array | None = None) -> mx.array:
    """Return which of `size` keys each of the newest `length` positions sees: (T, S), or (B, 1, T, S) with `starts`.

    A position sees itself and `window` positions before it, none before its row's start; a position before the start
    (padding) sees itself alone, so that no softmax is empty.
    """
    key = mx.arange(size)
    query = mx.arange(size - length, size)[:, None]
    distance = query - key
    mask = (distance >= 0) & (distance <= window)
    if starts is None:
        return mask
    from_start = key >= starts[:, None, None, None]
    return (mask & from_start) | (distance == 0)


def _repeat_heads(x: mx.array, queries: mx.array) -> mx.array:
    """Return (B, H, S, D) from (B, G, S, D)."""
    groups = queries.shape[1] // x.shape[1]
    return x if groups == 1 else mx.repeat(x, groups, axis=1)


def _attend(
    queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, mask: mx.array | Literal["causal"]
) -> mx.array:
    """Return fused attention of (B, T, H, D) and (B, S, G, D), as (B, T, H, D)."""
    by_head = (x.swapaxes(1, 2) for x in (queries, keys, values))
    return mx.fast.scaled_dot_product_attention(*by_head, scale=scale, mask=mask).swapaxes(1, 2)


def _with_block_before(x: mx.array, window: int) -> mx.array:
    """Return each block but the first behind the one before it, (B * blocks, 2 * window, G, D), from (B, S, G, D)."""
    if x.shape[1] == 2 * window:
        return x
    blocks = (x.reshape(x.shape[0], -1, window, *x.shape[2:])[:, part] for part in (slice(-1), slice(1, None)))
    return mx.concatenate(list(blocks), axis=2).reshape(-1, 2 * window, *x.shape[2:])
