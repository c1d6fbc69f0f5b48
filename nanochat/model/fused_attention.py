"""Windowed attention by MLX's fused kernel, `mx.fast.scaled_dot_product_attention`: what GPUs run.

The fused kernel knows causal attention but no windows, and a mask makes it compute every score. A windowed layer is
therefore cut into blocks of queries, each with only the keys that its window reaches. Metal, CUDA, and a CPU where it
has few queries or bfloat16 use this module; blocks that read their keys in place need CUDA.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys (S >= T), D head size.
"""

from __future__ import annotations

import functools
from typing import Literal

import mlx.core as mx

from nanochat.model.cuda.launch import runs_kernels
from nanochat.model.cuda.windows import overlapping_windows
from nanochat.model.gpt import visible_keys

_FUSED_MULTIPLE, _FUSED_HEAD_SIZE = 128, 128
"""cuDNN's fused attention with gradients takes a multiple of this many queries, and heads of at most this size."""
_MAX_BLOCKS = 4
"""Most blocks after the first one: each is a kernel launch of its own."""


def fused_attention(queries: mx.array, keys: mx.array, values: mx.array, *, window: int) -> mx.array:
    """Return the same as `gpt.attention`, in the queries' dtype."""
    length, size = queries.shape[2], keys.shape[2]
    mask: mx.array | Literal["causal"] | None
    if length == 1 and size <= window + 1:
        mask = None
    elif size <= window + 1:
        mask = "causal"
    elif length == size and _overlapping_blocks_fit(queries, window):
        return overlapping_block_attention(queries, keys, values, window=window)
    elif length == size and window > 0:
        return blocked_attention(queries, keys, values, window=window)
    else:
        mask = visible_keys(length, size, window=window)
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=queries.shape[-1] ** -0.5, mask=mask)


def blocked_attention(queries: mx.array, keys: mx.array, values: mx.array, *, window: int) -> mx.array:
    """Return the same as `gpt.attention` for T = S > window > 0, computed in blocks of the window's length.

    The first block is causal. Each later block sees its own keys and those of the block before it, through one mask
    that all blocks share. The mask is added to the scores: on CUDA a boolean mask leaves the fused path. Blocks are cut
    and concatenated as (B, T, H, D), the layout of the projections, where positions are outermost in memory.
    """
    scale, length = queries.shape[-1] ** -0.5, queries.shape[2]
    queries, keys, values = (x.swapaxes(1, 2) for x in (queries, keys, values))
    leading, following = mx.split(queries, [window], axis=1)
    first = _attend(leading, keys[:, :window], values[:, :window], scale=scale, mask="causal")
    padding = -length % window  # added at the end, where no real query sees it
    if padding:
        following, keys, values = (mx.pad(x, [(0, 0), (0, padding), (0, 0), (0, 0)]) for x in (following, keys, values))
    rest = _attend(
        following.reshape(-1, window, *following.shape[2:]),
        _with_block_before(keys, window),
        _with_block_before(values, window),
        scale=scale,
        mask=_window_bias(window, window, queries.dtype),
    )
    rest = rest.reshape(following.shape)
    return mx.concatenate([first, rest], axis=1)[:, :length].swapaxes(1, 2)


def overlapping_block_attention(queries: mx.array, keys: mx.array, values: mx.array, *, window: int) -> mx.array:
    """Return the same as `blocked_attention`, on CUDA: every block reads its keys in place instead of copying them."""
    length, scale = queries.shape[2], queries.shape[-1] ** -0.5
    block = _block_length(length, window)
    starts = range(window, length, block)
    query_windows = ((0, window), *((start, start + block) for start in starts))
    key_windows = ((0, window), *((start - window, start + block) for start in starts))
    parts = (
        overlapping_windows(x.swapaxes(1, 2), windows)
        for x, windows in ((queries, query_windows), (keys, key_windows), (values, key_windows))
    )
    bias = _window_bias(block, window, queries.dtype)
    blocks = [
        _attend(*of_block, scale=scale, mask=bias if i else "causal")
        for i, of_block in enumerate(zip(*parts, strict=True))
    ]
    return mx.concatenate(blocks, axis=1).swapaxes(1, 2)


def _overlapping_blocks_fit(queries: mx.array, window: int) -> bool:
    """Return whether CUDA's fused attention takes the blocks, with their gradient."""
    is_fused = runs_kernels() and queries.dtype == mx.bfloat16 and queries.shape[-1] <= _FUSED_HEAD_SIZE
    if not is_fused or window == 0 or window % _FUSED_MULTIPLE != 0:
        return False
    return (queries.shape[2] - window) % _block_length(queries.shape[2], window) == 0


def _block_length(length: int, window: int) -> int:
    """Return the queries per block: half a window, which masks fewer scores, unless that gives too many blocks."""
    half = window // 2
    return half if half % _FUSED_MULTIPLE == 0 and length - window <= _MAX_BLOCKS * half else window


@functools.lru_cache(maxsize=8)
def _window_bias(length: int, window: int, dtype: mx.Dtype) -> mx.array:
    """Return 0 or -inf, added to the scores of `length` queries over those keys and the `window` keys before them."""
    visible = visible_keys(length, window + length, window=window)
    return mx.where(visible, mx.array(0, dtype), mx.array(-mx.inf, dtype))[None, None]


def _attend(
    queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, mask: mx.array | Literal["causal"]
) -> mx.array:
    """Return fused attention of (B, T, H, D) and (B, S, G, D), as (B, T, H, D)."""
    by_head = (x.swapaxes(1, 2) for x in (queries, keys, values))
    return mx.fast.scaled_dot_product_attention(*by_head, scale=scale, mask=mask).swapaxes(1, 2)


def _with_block_before(x: mx.array, window: int) -> mx.array:
    """Return every block except the first, preceded by the block before it: (B * blocks, 2 * window, G, D)."""
    if x.shape[1] == 2 * window:
        return x
    blocks = (x.reshape(x.shape[0], -1, window, *x.shape[2:])[:, part] for part in (slice(-1), slice(1, None)))
    return mx.concatenate(list(blocks), axis=2).reshape(-1, 2 * window, *x.shape[2:])
