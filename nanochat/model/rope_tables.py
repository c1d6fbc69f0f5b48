"""Tables of the cosines and sines of rotary embeddings, for implementations that do not use MLX's own."""

from __future__ import annotations

import functools

import mlx.core as mx
import numpy as np


def angles(positions: int, size: int, base: float) -> tuple[mx.array, mx.array]:
    """Return cosines and sines of position * base^(-2j / size), each (at least `positions`, size / 2) float32."""
    return _table(1 << (positions - 1).bit_length(), size, base)  # a power of two, so that decoding creates few tables


@functools.lru_cache(maxsize=8)
def _table(positions: int, size: int, base: float) -> tuple[mx.array, mx.array]:
    frequencies = base ** (-np.arange(0, size, 2, dtype=np.float64) / size)
    angle = np.arange(positions, dtype=np.float64)[:, None] * frequencies
    return mx.array(np.cos(angle).astype(np.float32)), mx.array(np.sin(angle).astype(np.float32))
