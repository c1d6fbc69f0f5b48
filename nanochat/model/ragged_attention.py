"""Attention of rows without padding, a group of rows at a time, in the form that is fastest where it runs.

Shapes: N tokens in all, R rows of a group, T own tokens, S keys, H query heads, G key/value heads, D head size.
Not here: which rows make a group (`ragged`).
"""

from __future__ import annotations

import mlx.core as mx

from nanochat.model.attention import attention
from nanochat.model.kernels.launch import runs_kernels
from nanochat.model.ragged import Ragged


def ragged_attention(queries: mx.array, keys: mx.array, values: mx.array, rows: Ragged, *, window: int) -> mx.array:
    """Return (N, H * D) from queries (N, H, D), keys and values (N, G, D), in the queries' dtype."""
    attend = _written_out if runs_kernels() else _fused
    # Heads outermost: what is picked is then contiguous by head, which a batch of matrix products wants.
    return attend(queries.swapaxes(0, 1), keys.swapaxes(0, 1), values.swapaxes(0, 1), rows, window)


def _fused(queries: mx.array, keys: mx.array, values: mx.array, rows: Ragged, window: int) -> mx.array:
    mixed = []
    for group in rows.groups:
        found = attention(
            *(
                mx.take(x, places, axis=1).swapaxes(0, 1)
                for x, places in ((queries, group.queries), (keys, group.keys), (values, group.keys))
            ),
            window=window,
            mask=group.mask(window),
        )
        mixed.append(found.swapaxes(1, 2).reshape(found.shape[0] * found.shape[2], -1))
    return mx.concatenate(mixed)[rows.order]


def _written_out(queries: mx.array, keys: mx.array, values: mx.array, rows: Ragged, window: int) -> mx.array:
    """Attend by plain products: cuDNN's fused form takes 40 ms to plan a shape, and hardly two groups have the same.

    In float32, so that scores are not rounded; where the compute type is bfloat16, MLX multiplies with TF32's 11 bits.
    """
    heads, _, size = queries.shape
    scaled = queries.astype(mx.float32) * size**-0.5
    keys, values = (mx.repeat(x.astype(mx.float32), heads // x.shape[0], axis=0) for x in (keys, values))
    mixed = []
    for group in rows.groups:
        own = mx.take(scaled, group.queries, axis=1)
        seen, told = (mx.take(x, group.keys, axis=1) for x in (keys, values))
        weights = mx.softmax(own @ seen.swapaxes(-1, -2) + group.bias(window), axis=-1)
        mixed.append((weights @ told).reshape(heads, -1, size))
    found = mx.take(mx.concatenate(mixed, axis=1), rows.order, axis=1)
    return found.swapaxes(0, 1).reshape(-1, heads * size).astype(queries.dtype)
