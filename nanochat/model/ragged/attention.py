"""Attention of rows without padding (`ragged_rows`): a token sees its own row and the parent row, within the window.

`row_by_row` is for a CPU, `by_group` for a GPU; `dispatch` chooses. Shapes: N tokens in all rows, H query heads, G
key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import mlx.core as mx
import numpy as np

from nanochat.model.layers import visible_keys
from nanochat.model.ragged.ragged_rows import Ragged
from nanochat.model.ragged.row_groups import Extent
from nanochat.model.rope_tables import Floats

_BLOCK_SCORES = 2**16
"""Scores of all heads that are computed at once: they stay in the L2 cache."""
_FEWEST_QUERIES = 32


def by_group(queries: mx.array, keys: mx.array, values: mx.array, rows: Ragged, *, window: int) -> mx.array:
    """Return softmax(q k) v over the keys that each token sees, (N, H, D) float32, one group of padded rows at a time.

    It uses plain matrix products, because cuDNN needs 40 ms to plan fused attention for every new shape, and groups
    rarely share a shape. If the compute dtype is bfloat16, MLX multiplies with the 11 bits of TF32.

    Args:
        queries: (N, H, D) float32, normed and already multiplied by D^-0.5.
        keys: (N, G, D) float32, normed; G divides H.
        values: (N, G, D) float32.
        rows: the layout of the rows.
        window: how many positions before its own a token sees.
    """
    heads, size = queries.shape[1:]
    # With heads outermost, `take` returns arrays that are contiguous by head, as batched matrix products need them.
    queries, keys, values = (mx.repeat(x.swapaxes(0, 1), heads // x.shape[1], axis=0) for x in (queries, keys, values))
    mixed = []
    for group in rows.grouping.groups:
        q = mx.take(queries, group.queries, axis=1)
        k, v = (mx.take(x, group.keys, axis=1) for x in (keys, values))
        weights = mx.softmax(q @ k.swapaxes(-1, -2) + group.bias(window), axis=-1)
        mixed.append((weights @ v).reshape(heads, -1, size))
    return mx.take(mx.concatenate(mixed, axis=1), rows.grouping.order, axis=1).swapaxes(0, 1)


def row_by_row(queries: mx.array, keys: mx.array, values: mx.array, rows: Ragged, *, window: int) -> mx.array:
    """Return the same as `by_group` without padding, in NumPy, for a CPU.

    NumPy's exponential costs a ninth of MLX's there, and its product of small matrices costs less than the overhead of
    an MLX operation. Queries and keys are normed, so exponentials need no shift (`cpu.attention`).
    """
    count, heads, size = queries.shape
    mx.eval(queries, keys, values)
    q, k, v = (_by_head(np.array(x, copy=False), keys.shape[1]) for x in (queries, keys, values))
    mixed = np.empty((count, heads, size), dtype=np.float32)
    out = _by_head(mixed, keys.shape[1])
    block, most = max(_FEWEST_QUERIES, _BLOCK_SCORES // (heads * rows.longest)), min(rows.longest, window)
    mask = _mask(block, most, window)
    for here, before, own in _blocks(rows.extents, block, window):
        length, earlier = here.stop - here.start, before.stop - before.start
        seen = earlier + own.stop - own.start
        weights = np.empty((*q.shape[:2], length, seen), dtype=np.float32)
        for part, columns in ((before, weights[..., :earlier]), (own, weights[..., earlier:])):
            np.matmul(q[:, :, here], k[:, :, part].swapaxes(-1, -2), out=columns)
        np.exp(weights, out=weights)
        weights *= mask[:length, most + length - seen : most + length]
        sums = weights[..., :earlier] @ v[:, :, before] + weights[..., earlier:] @ v[:, :, own]
        np.divide(sums, weights.sum(axis=-1, keepdims=True), out=out[:, :, here])
    return mx.array(mixed)


def _by_head(x: Floats, groups: int) -> Floats:
    """Return (N, H, D) as (G, H / G, N, D), without a copy."""
    return x.reshape(len(x), groups, -1, x.shape[-1]).transpose(1, 2, 0, 3)


def _blocks(extents: Sequence[Extent], block: int, window: int) -> Iterator[tuple[slice, slice, slice]]:
    """Yield slices of at most `block` queries of a row, of the parent's keys they see, and of the row's own keys."""
    for extent in extents:
        for begin in range(0, extent.length, block):
            end = min(begin + block, extent.length)
            first = max(0, extent.context + begin - window)
            before = slice(extent.before.start + min(first, extent.context), extent.before.stop)
            start = extent.own.start
            yield slice(start + begin, start + end), before, slice(start + max(0, first - extent.context), start + end)


@lru_cache(maxsize=8)
def _mask(length: int, before: int, window: int) -> Floats:
    """Return 1 where the newest `length` positions, after `before` earlier ones, see a key, else 0: (length, all)."""
    return np.array(visible_keys(length, before + length, window=window).astype(mx.float32))
