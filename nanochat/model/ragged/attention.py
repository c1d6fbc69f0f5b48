"""Attention of rows without padding (`ragged`): a row sees its own tokens and those before it.

One function chooses the form for the backend. Shapes: N tokens in all, H query heads, G key/value heads, D head size.
Scores are scaled by D^-0.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from nanochat.model.device import runs_on_cpu
from nanochat.model.ragged.row_groups import Extent
from nanochat.model.ragged.rows import Ragged

Floats = npt.NDArray[np.float32]

_BLOCK_SCORES = 2**16
"""Scores of all heads that are computed at once: they stay in the L2 cache."""
_FEWEST_QUERIES = 32


def ragged_attention(queries: mx.array, keys: mx.array, values: mx.array, rows: Ragged, *, window: int) -> mx.array:
    """Return softmax(q k / sqrt(D)) v over the keys that each token may see, (N, H * D) in the queries' dtype.

    Args:
        queries: (N, H, D), normed.
        keys: (N, G, D), normed, G a divisor of H.
        values: (N, G, D).
        rows: where rows stand.
        window: how many positions before its own a token sees.
    """
    attend = row_by_row if runs_on_cpu() else by_group
    heads = queries.shape[1]
    scaled = queries.astype(mx.float32) * queries.shape[-1] ** -0.5  # scores are not rounded
    mixed = attend(scaled, keys.astype(mx.float32), values.astype(mx.float32), rows, window=window)
    return mixed.reshape(-1, heads * queries.shape[-1]).astype(queries.dtype)


def by_group(queries: mx.array, keys: mx.array, values: mx.array, rows: Ragged, *, window: int) -> mx.array:
    """Return (N, H, D) from float32 arrays and scaled queries, a group of padded rows at a time, by plain products.

    A fused form would be planned anew for each shape, which takes cuDNN 40 ms, and hardly two groups have the same.
    Where the compute type is bfloat16, MLX multiplies with TF32's 11 bits.
    """
    heads, size = queries.shape[1:]
    # Heads outermost: what is picked is then contiguous by head, which a batch of matrix products wants.
    queries, keys, values = (mx.repeat(x.swapaxes(0, 1), heads // x.shape[1], axis=0) for x in (queries, keys, values))
    mixed = []
    for group in rows.grouping.groups:
        own = mx.take(queries, group.queries, axis=1)
        seen, told = (mx.take(x, group.keys, axis=1) for x in (keys, values))
        weights = mx.softmax(own @ seen.swapaxes(-1, -2) + group.bias(window), axis=-1)
        mixed.append((weights @ told).reshape(heads, -1, size))
    return mx.take(mx.concatenate(mixed, axis=1), rows.grouping.order, axis=1).swapaxes(0, 1)


def row_by_row(queries: mx.array, keys: mx.array, values: mx.array, rows: Ragged, *, window: int) -> mx.array:
    """Return the same as `by_group`, without padding, on a CPU.

    In NumPy: there its exponential costs a ninth of MLX's, and a product of small matrices less than an MLX operation.
    Queries and keys are normed, so exponentials need no shift (`cpu_attention`).
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
    """Yield places of at most `block` queries of a row, and of keys that one of them sees: before the row, its own."""
    for extent in extents:
        for begin in range(0, extent.length, block):
            end = min(begin + block, extent.length)
            first = max(0, extent.context + begin - window)
            before = slice(extent.before.start + min(first, extent.context), extent.before.stop)
            start = extent.own.start
            yield slice(start + begin, start + end), before, slice(start + max(0, first - extent.context), start + end)


@lru_cache(maxsize=8)
def _mask(length: int, before: int, window: int) -> Floats:
    """Return 1 where the newest `length` positions, `before` earlier ones, see a key, else 0: (length, all)."""
    distance = np.arange(before, before + length)[:, None] - np.arange(before + length)
    return ((distance >= 0) & (distance <= window)).astype(np.float32)
