"""The CPU's form of `block_attention`: small blocks, which stay in the L2 cache, and fast exponentials, for float32."""

from __future__ import annotations

from functools import lru_cache

import mlx.core as mx

from nanochat.model.cpu import fast_math
from nanochat.model.low_memory.block_attention import BlockForm, by_key_head, visible, visible_exponentials


def _attend(queries: mx.array, keys: mx.array, values: mx.array, *, window: int) -> tuple[mx.array, mx.array]:
    """Return the attention of one block, without the pass for the largest score, and the sums of its exponentials."""
    batch, heads, length, _ = queries.shape
    q = by_key_head(queries, keys)
    exponentials = visible_exponentials(FORM, q, keys, length=length, window=window)
    total = exponentials.sum(axis=-1, keepdims=True)
    mixed = (exponentials @ values) * mx.reciprocal(total)
    return mixed.reshape(queries.shape), total.reshape(batch, heads, length, 1)


# Layers share the masks.
FORM = BlockForm(64, _attend, fast_math.exp, lru_cache(maxsize=32)(visible))
