"""Windowed causal attention for training that never holds all scores: it works on one block of queries at a time.

A block reads only the keys that its queries see, so the blocks above the diagonal and those before the window are
skipped. The backward pass recomputes the weights of each block. What differs between devices is a `BlockForm`: `PLAIN`
here is composed of MLX's own calls, for Metal, and `cpu.attention` has another. `dispatch` chooses.

Queries and keys are normed, so a score is at most sqrt(D) * 1.2^2 and its exponential needs no shift by the largest.
Shapes: B batch, H query heads, G key/value heads, R = H / G, T queries, S keys, D head size; Q queries and K keys of a
block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Literal, NamedTuple, cast

import mlx.core as mx

from nanochat.model.layers import visible_keys

_BLOCK_QUERIES = 256
"""The scores of a block, in float32, take 1 KiB per row of the batch, head and key."""


class BlockForm(NamedTuple):
    """The operations on a block of queries that differ between devices."""

    block_queries: int
    attend: Callable[..., tuple[mx.array, ...]]
    """(queries (B, H, Q, D), keys (B, G, K, D), values, window=) -> (softmax(q k^T / sqrt(D)) v, (B, H, Q, D),).

    A second result is the sums of the exponentials (B, H, Q, 1), if the backward pass should not compute them again."""
    exponentials: Callable[[mx.array, float], mx.array]
    """(scores, scale) -> e^(scale * scores), float32."""
    visible: Callable[[int, int, int], mx.array]
    """(Q, K, window) -> `visible_keys` in float32."""


def block_attention(queries: mx.array, keys: mx.array, values: mx.array, *, window: int, form: BlockForm) -> mx.array:
    """Return the same as `layers.attention`, in the queries' dtype. All three arguments have gradients."""
    return _windowed(form, window)(queries, keys, values)[0]


@cache
def _windowed(form: BlockForm, window: int) -> Callable[..., tuple[mx.array, ...]]:
    """Return the function of (queries, keys, values) for one window: custom functions take only arrays."""
    function = mx.custom_function(lambda *qkv: _forward(form, qkv, window))
    function.vjp(lambda primals, cotangents, outputs: _backward(form, primals, cotangents[0], outputs, window))
    return cast("Callable[..., tuple[mx.array, ...]]", function)


def _forward(form: BlockForm, qkv: tuple[mx.array, ...], window: int) -> tuple[mx.array, ...]:
    queries, keys, values = qkv
    results: list[tuple[mx.array, ...]] = []
    for rows, columns in _blocks(form.block_queries, queries.shape[2], keys.shape[2], window):
        if results:  # one block's weights at a time
            (queries,) = mx.depends([queries], [results[-1][0]])
        parts = queries[:, :, rows], keys[:, :, columns], values[:, :, columns]
        results.append(form.attend(*parts, window=window))
    return tuple(_join(parts) for parts in zip(*results, strict=True))


def _backward(
    form: BlockForm, primals: tuple[mx.array, ...], cotangent: mx.array, outputs: tuple[mx.array, ...], window: int
) -> tuple[mx.array, mx.array, mx.array]:
    """Return the gradients for queries, keys and values; those of keys and values are summed in float32.

    With exponentials E, their sums Z and the output O: dV = E^T (dO / Z),
    dscores = E * ((dO / Z) V^T - sum(dO / Z * O)).
    """
    queries, keys, values = primals
    scale = queries.shape[-1] ** -0.5
    of_queries: list[mx.array] = []
    of_keys, of_values = (mx.zeros(x.shape, mx.float32) for x in (keys, values))
    for rows, columns in _blocks(form.block_queries, queries.shape[2], keys.shape[2], window):
        # Recompute only when the gradient is known, and one block's weights at a time.
        (queries,) = mx.depends([queries], [of_queries[-1], of_keys, of_values] if of_queries else [cotangent])
        k, v = keys[:, :, columns], values[:, :, columns]
        part = queries[:, :, rows]
        q, d_out, out, *sums = (by_key_head(x, k) for x in (part, *(x[:, :, rows] for x in (cotangent, *outputs))))
        exponentials = visible_exponentials(form, q, k, length=part.shape[2], window=window)
        shared = d_out * mx.reciprocal(sums[0] if sums else exponentials.sum(axis=-1, keepdims=True))
        scaled = shared * scale
        of_weights = scaled.astype(v.dtype) @ v.swapaxes(-1, -2) - (scaled * out).sum(axis=-1, keepdims=True)
        of_scores = (exponentials * of_weights).astype(k.dtype)
        of_queries.append((of_scores @ k).reshape(part.shape))
        of_keys[:, :, columns] += of_scores.swapaxes(-1, -2) @ q
        of_values[:, :, columns] += exponentials.astype(v.dtype).swapaxes(-1, -2) @ shared.astype(v.dtype)
    return _join(of_queries), of_keys.astype(keys.dtype), of_values.astype(values.dtype)


def _blocks(size: int, length: int, keys: int, window: int) -> Iterator[tuple[slice, slice]]:
    """Yield blocks of `size` queries of `length`, and the keys that they see; the queries are the newest positions."""
    before = keys - length
    for begin in range(0, length, size):
        end = min(begin + size, length)
        yield slice(begin, end), slice(max(0, before + begin - window), before + end)


def _join(blocks: Sequence[mx.array]) -> mx.array:
    """Return blocks (B, H, Q, D) as one (B, H, T, D), laid out as (B, T, H, D), which the caller needs next."""
    return mx.concatenate([block.swapaxes(1, 2) for block in blocks], axis=1).swapaxes(1, 2)


def by_key_head(x: mx.array, keys: mx.array) -> mx.array:
    """Return x (B, H, Q, ...) as (B, G, R * Q, ...): the query heads of each key head below one another."""
    return x if x.shape[1] == keys.shape[1] else x.reshape(x.shape[0], keys.shape[1], -1, x.shape[-1])


def visible_exponentials(form: BlockForm, queries: mx.array, keys: mx.array, *, length: int, window: int) -> mx.array:
    """Return e^score (B, G, R * Q, K) of queries (B, G, R * Q, D) and keys (B, G, K, D), 0 where a key is not seen.

    `length` is Q; the queries are the newest of the K positions.
    """
    weights = form.exponentials(queries @ keys.swapaxes(-1, -2), queries.shape[-1] ** -0.5)
    visible = form.visible(length, keys.shape[2], window)
    if weights.shape[2] == length:
        return weights * visible
    return (weights.reshape(*weights.shape[:2], -1, *visible.shape) * visible).reshape(weights.shape)


def visible(length: int, size: int, window: int) -> mx.array:
    """Return 1 where the newest `length` of `size` positions see a key, else 0, float32 (length, size)."""
    return visible_keys(length, size, window=window).astype(mx.float32)


def _fused(queries: mx.array, keys: mx.array, values: mx.array, *, window: int) -> tuple[mx.array]:
    """Return attention by MLX's own call, which is a fused kernel on Metal unless a gradient is being traced."""
    length, size = queries.shape[2], keys.shape[2]
    mask: mx.array | Literal["causal"] = "causal" if size <= window + 1 else visible_keys(length, size, window=window)
    return (mx.fast.scaled_dot_product_attention(queries, keys, values, scale=queries.shape[-1] ** -0.5, mask=mask),)


def _exponentials(scores: mx.array, scale: float) -> mx.array:
    return mx.exp(scores.astype(mx.float32) * scale)


PLAIN = BlockForm(_BLOCK_QUERIES, _fused, _exponentials, visible)
"""MLX's own calls. Trained on Metal, they keep the scores of one block of queries at a time."""
