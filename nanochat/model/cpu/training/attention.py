"""Windowed causal attention and its gradient in NumPy, in blocks whose scores stay in the L2 cache.

Queries and keys are normed, so a score is at most sqrt(D) * 1.2^2 and its exponential needs no shift. The gradient
recomputes the exponentials. Shapes: B rows, T positions, G key/value heads, R query heads for each of them, D head
size.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from nanochat.model.rope_tables import Floats

_BLOCK_QUERIES = 64
_BLOCK_SCORES = 96 * 1024
"""Scores of a block at most, unless one row has more."""


class _Block(NamedTuple):
    """Rows of the batch, queries, the keys that at least one of these sees, and 1 or 0 for each query and key."""

    rows: slice
    queries: slice
    keys: slice
    visible: Floats


def attend(queries: Floats, keys: Floats, values: Floats, *, window: int) -> tuple[Floats, Floats]:
    """Return attention's output like the queries (B, T, G, R, D), and the inverse sums of exponentials (B, G, R, T, 1).

    Args:
        queries: (B, T, G, R, D), normed; a query sees `window` positions before its own.
        keys: (B, T, G, D), normed.
        values: (B, T, G, D).
        window: see above.
    """
    batch, length, groups, repeats, size = queries.shape
    mixed = np.empty(queries.shape, dtype=np.float32)
    inverses = np.empty((batch, groups, repeats, length, 1), dtype=np.float32)
    q, k, v, out = (_by_head(x) for x in (queries * np.float32(size**-0.5), keys, values, mixed))
    for rows, at, seen, visible in _blocks(queries.shape, window):
        weights = np.matmul(q[rows, ..., at, :], k[rows, ..., seen, :].swapaxes(-1, -2))
        np.exp(weights, out=weights)
        weights *= visible
        inverse = np.reciprocal(weights.sum(axis=-1, keepdims=True), out=inverses[rows, ..., at, :])
        np.multiply(np.matmul(weights, v[rows, ..., seen, :]), inverse, out=out[rows, ..., at, :])
    return mixed, inverses


def attend_gradient(
    gradient: Floats, queries: Floats, keys: Floats, values: Floats, mixed: Floats, inverses: Floats, *, window: int
) -> tuple[Floats, Floats, Floats]:
    """Return the gradients for queries, keys and values from that for the output `mixed` (B, T, G, R, D).

    With weights E / total and output O: dV = (E / total)^T dO, dscores = (E / total) * (dO V^T - sum(dO * O)).
    """
    scale = np.float32(queries.shape[-1] ** -0.5)
    of_queries = np.empty(queries.shape, dtype=np.float32)
    of_keys, of_values = np.zeros(keys.shape, dtype=np.float32), np.zeros(values.shape, dtype=np.float32)
    offsets = _by_head(np.vecdot(gradient, mixed)[..., None])
    q, k, v, do, dq, dk, dv = (
        _by_head(x) for x in (queries * scale, keys, values, gradient, of_queries, of_keys, of_values)
    )
    for rows, at, seen, visible in _blocks(queries.shape, window):
        block_q, block_k, block_do = q[rows, ..., at, :], k[rows, ..., seen, :], do[rows, ..., at, :]
        weights = np.matmul(block_q, block_k.swapaxes(-1, -2))
        np.exp(weights, out=weights)
        weights *= visible
        weights *= inverses[rows, ..., at, :]
        change = np.matmul(block_do, v[rows, ..., seen, :].swapaxes(-1, -2))
        change -= offsets[rows, ..., at, :]
        change *= weights
        np.multiply(np.matmul(change, block_k), scale, out=dq[rows, ..., at, :])
        dk[rows, ..., seen, :] += np.matmul(change.swapaxes(-1, -2), block_q).sum(axis=2, keepdims=True)
        dv[rows, ..., seen, :] += np.matmul(weights.swapaxes(-1, -2), block_do).sum(axis=2, keepdims=True)
    return of_queries, of_keys, of_values


def _by_head(x: Floats) -> Floats:
    """Return a view (B, G, R, T, D) of (B, T, G, R, D), or (B, G, 1, T, D) of (B, T, G, D)."""
    return x.transpose(0, 2, 3, 1, 4) if x.ndim == 5 else x.transpose(0, 2, 1, 3)[:, :, None]


def _blocks(shape: tuple[int, ...], window: int) -> Iterator[_Block]:
    batch, length, groups, repeats, _ = shape
    for begin in range(0, length, _BLOCK_QUERIES):
        end, first = min(begin + _BLOCK_QUERIES, length), max(0, begin - window)
        visible = _visible(end - begin, end - first, window)
        share = max(1, _BLOCK_SCORES // (groups * repeats * visible.size))
        for row in range(0, batch, share):
            yield _Block(slice(row, row + share), slice(begin, end), slice(first, end), visible)


@lru_cache(maxsize=32)
def _visible(length: int, size: int, window: int) -> Floats:
    """Return 1 where the newest `length` of `size` positions see a position, else 0; layers share it."""
    distance = np.arange(size - length, size)[:, None] - np.arange(size)
    return ((distance >= 0) & (distance <= window)).astype(np.float32)
