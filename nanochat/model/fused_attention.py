"""Windowed attention by MLX's fused kernel, `mx.fast.scaled_dot_product_attention`: for reading a cache, and on CUDA.

The fused kernel knows causal attention but no windows, and a mask makes it compute every score. To train on a windowed
layer, CUDA therefore works on blocks of queries, each with only the keys that its window reaches, which it reads in
place. `overlapping_windows` makes these blocks; a kernel of ours adds up the gradients of keys that two blocks read.
Devices whose fused kernel has no gradient train with `block_attention`.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys (S >= T), D head size; F features of a
position (heads times D).
"""

from __future__ import annotations

import functools
from typing import Literal

import mlx.core as mx

from nanochat.model.cuda.windows import Window, overlapping_windows
from nanochat.model.device import computes_on_cuda, runs_kernels
from nanochat.model.layers import visible_keys

_FUSED_MULTIPLE, _FUSED_HEAD_SIZE = 128, 128
"""cuDNN's fused attention with gradients takes a multiple of this many queries, and heads of at most this size."""
_MAX_BLOCKS = 4
"""Most blocks after the first one: each is a kernel launch of its own."""


def fused_attention(queries: mx.array, keys: mx.array, values: mx.array, *, window: int) -> mx.array:
    """Return the same as `layers.attention`, in the queries' dtype."""
    length, size = queries.shape[2], keys.shape[2]
    mask: mx.array | Literal["causal"] | None
    if size <= window + 1:
        mask = None if length == 1 else "causal"
    elif length == size and _overlapping_blocks_fit(queries, window):
        return overlapping_block_attention(queries, keys, values, window=window)
    else:
        mask = visible_keys(length, size, window=window)
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=queries.shape[-1] ** -0.5, mask=mask)


def has_fused_gradient(queries: mx.array, window: int) -> bool:
    """Return whether this device computes the gradient of `fused_attention` on whole rows without storing scores.

    cuDNN does in bfloat16, for causal rows and for overlapping blocks. Metal never does: see
    `ScaledDotProductAttention::use_fallback` in MLX.
    """
    is_causal = queries.shape[2] <= window + 1
    is_fused = computes_on_cuda() and queries.dtype == mx.bfloat16 and queries.shape[-1] <= _FUSED_HEAD_SIZE
    return is_fused and (is_causal or _overlapping_blocks_fit(queries, window))


def overlapping_block_attention(queries: mx.array, keys: mx.array, values: mx.array, *, window: int) -> mx.array:
    """Return the same as `layers.attention`, on CUDA, for T = S > window > 0 and what `_overlapping_blocks_fit` takes.

    A block reads its keys in place instead of copying them. Our kernel adds up the gradients of overlapping keys;
    without it, MLX pads and adds them one by one.
    """
    length, scale = queries.shape[2], queries.shape[-1] ** -0.5
    block = _block_length(length, window)
    starts = range(window, length, block)
    query_windows = ((0, window), *((start, start + block) for start in starts))
    key_windows = ((0, window), *((start - window, start + block) for start in starts))
    cut = overlapping_windows if runs_kernels() else _slices
    parts = (
        cut(x.swapaxes(1, 2), windows)
        for x, windows in ((queries, query_windows), (keys, key_windows), (values, key_windows))
    )
    bias = _window_bias(block, window, queries.dtype)
    blocks = [
        _attend(*of_block, scale=scale, mask=bias if i else "causal")
        for i, of_block in enumerate(zip(*parts, strict=True))
    ]
    return mx.concatenate(blocks, axis=1).swapaxes(1, 2)


def _slices(x: mx.array, windows: tuple[Window, ...]) -> tuple[mx.array, ...]:
    return tuple(x[:, first:end] for first, end in windows)


def _overlapping_blocks_fit(queries: mx.array, window: int) -> bool:
    """Return whether CUDA's fused attention takes the blocks, with their gradient."""
    is_fused = computes_on_cuda() and queries.dtype == mx.bfloat16 and queries.shape[-1] <= _FUSED_HEAD_SIZE
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
    bias = mx.where(visible, mx.array(0, dtype), mx.array(-mx.inf, dtype))[None, None]
    mx.eval(bias)  # a compiled step would compute it each time, with a kernel that takes nine seconds to compile
    return bias


def _attend(
    queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, mask: mx.array | Literal["causal"]
) -> mx.array:
    """Return fused attention of (B, T, H, D) and (B, S, G, D), as (B, T, H, D)."""
    by_head = (x.swapaxes(1, 2) for x in (queries, keys, values))
    return mx.fast.scaled_dot_product_attention(*by_head, scale=scale, mask=mask).swapaxes(1, 2)
