"""Windowed causal attention for the CPU, computed in blocks of queries. Its softmax needs no maximum.

Queries and keys are normed, so a score is at most sqrt(D) * 1.2^2 and its exponential needs no shift. The backward pass
recomputes the weights, block by block. Shapes: B batch, H heads, T queries, S keys, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from typing import NamedTuple, cast

import mlx.core as mx

from nanochat.model.cpu import fast_math
from nanochat.model.gpt import visible_keys

_BLOCK_QUERIES = 64


class _Block(NamedTuple):
    """Queries [begin, end) and the keys [first_key, end_key) that at least one of them sees."""

    begin: int
    end: int
    first_key: int
    end_key: int


def cpu_attention(queries: mx.array, keys: mx.array, values: mx.array, *, window: int) -> mx.array:
    """Return (B, H, T, D) like `gpt.attention`, from float32 queries (B, H, T, D), keys and values (B, H, S, D).

    Queries and keys are normed, and a query sees `window` positions before its own.
    """
    return _windowed(window)(queries, keys, values)[0]


@cache
def _windowed(window: int) -> Callable[..., tuple[mx.array, mx.array]]:
    """Return the function of (queries, keys, values) for one window: custom functions take only arrays."""
    function = mx.custom_function(lambda queries, keys, values: _forward(queries, keys, values, window))
    function.vjp(lambda primals, cotangents, outputs: _backward(primals, cotangents[0], outputs, window))
    return cast("Callable[..., tuple[mx.array, mx.array]]", function)


def _forward(queries: mx.array, keys: mx.array, values: mx.array, window: int) -> tuple[mx.array, mx.array]:
    """Return (mixed values (B, H, T, D), sums of exponentials (B, H, T, 1))."""
    mixed: list[mx.array] = []
    totals: list[mx.array] = []
    for block in _blocks(queries.shape[2], keys.shape[2], window):
        (queries,) = mx.depends([queries], mixed[-1:]) if mixed else (queries,)  # one block's weights at a time
        weights = _exponentials(queries, keys, block, window)
        totals.append(weights.sum(axis=-1, keepdims=True))
        mixed.append((weights @ values[:, :, block.first_key : block.end_key]) * mx.reciprocal(totals[-1]))
    return mx.concatenate(mixed, axis=2), mx.concatenate(totals, axis=2)


def _backward(
    primals: tuple[mx.array, ...], cotangent: mx.array, outputs: tuple[mx.array, ...], window: int
) -> tuple[mx.array, mx.array, mx.array]:
    """Return the gradients for queries, keys and values.

    With weights E / total and output O: dV = (E / total)^T dO, dscores = (E / total) * (dO V^T - sum(dO * O)).
    """
    queries, keys, values = primals
    mixed, totals = outputs
    scale = queries.shape[-1] ** -0.5
    shared = cotangent * mx.reciprocal(totals)
    offset = (shared * mixed).sum(axis=-1, keepdims=True)
    of_queries: list[mx.array] = []
    of_keys, of_values = mx.zeros_like(keys), mx.zeros_like(values)
    for block in _blocks(queries.shape[2], keys.shape[2], window):
        if of_queries:  # one block's weights at a time
            (queries,) = mx.depends([queries], [of_queries[-1], of_keys, of_values])
        rows, columns = slice(block.begin, block.end), slice(block.first_key, block.end_key)
        weights = _exponentials(queries, keys, block, window)
        of_weights = shared[:, :, rows] @ values[:, :, columns].swapaxes(-1, -2) - offset[:, :, rows]
        of_scores = weights * of_weights
        of_queries.append((of_scores @ keys[:, :, columns]) * scale)
        of_keys[:, :, columns] += of_scores.swapaxes(-1, -2) @ (queries[:, :, rows] * scale)
        of_values[:, :, columns] += weights.swapaxes(-1, -2) @ shared[:, :, rows]
    return mx.concatenate(of_queries, axis=2), of_keys, of_values


def _blocks(length: int, size: int, window: int) -> Iterator[_Block]:
    """Yield blocks of queries; query i is at position size - length + i."""
    before = size - length
    for begin in range(0, length, _BLOCK_QUERIES):
        end = min(begin + _BLOCK_QUERIES, length)
        yield _Block(begin, end, max(0, before + begin - window), before + end)


def _exponentials(queries: mx.array, keys: mx.array, block: _Block, window: int) -> mx.array:
    """Return e^score of the block, 0 where a query does not see a key."""
    scores = queries[:, :, block.begin : block.end] @ keys[:, :, block.first_key : block.end_key].swapaxes(-1, -2)
    visible = _visible(block.end - block.begin, block.end_key - block.first_key, window)
    return fast_math.exp(scores, queries.shape[-1] ** -0.5) * visible


@lru_cache(maxsize=32)
def _visible(length: int, size: int, window: int) -> mx.array:
    """Return `visible_keys` as 1 and 0 in float32; layers share it."""
    return visible_keys(length, size, window=window).astype(mx.float32)
