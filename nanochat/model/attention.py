"""Attention over a window of previous positions: one function chooses the form for the backend.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys (S >= T), D head size. The queries are always the
newest positions: query i stands at key S - T + i. Scores are scaled by D^-0.5. Not here: projections, rotation, norms
(`layers`).
"""

from __future__ import annotations

import mlx.core as mx


def attention(
    queries: mx.array, keys: mx.array, values: mx.array, *, window: int, starts: mx.array | None = None
) -> mx.array:
    """Return softmax(q k / sqrt(D)) v over the keys that each query may see, (B, H, T, D) in the queries' dtype.

    Args:
        queries: (B, H, T, D).
        keys: (B, G, S, D), G a divisor of H; query head j reads key head j // (H / G).
        values: (B, G, S, D).
        window: how many positions before its own a query sees.
        starts: (B,) index of the first key that row b may see (left padding); None where rows are whole.
    """
    length, size = queries.shape[2], keys.shape[2]
    scale = queries.shape[-1] ** -0.5
    if starts is None and window >= size - 1:
        causal = "causal" if length > 1 else None
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=causal)
    mask = visible(length, size, window=window, starts=starts)
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)


def plain_attention(
    queries: mx.array, keys: mx.array, values: mx.array, *, window: int, starts: mx.array | None = None
) -> mx.array:
    """Return the same as `attention`, written out: the reference for every other form."""
    groups = queries.shape[1] // keys.shape[1]
    keys, values = mx.repeat(keys, groups, axis=1), mx.repeat(values, groups, axis=1)
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
