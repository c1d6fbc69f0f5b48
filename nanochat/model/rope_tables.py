"""Tables of the cosines and sines of rotary embeddings, for implementations that do not use MLX's own."""

from __future__ import annotations

import functools

import mlx.core as mx
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def angles(positions: int, size: int, base: float) -> tuple[mx.array, mx.array]:
    """Return cosines and sines of position * base^(-2j / size), each (at least `positions`, size / 2) float32."""
    return _mlx_table(1 << (positions - 1).bit_length(), size, base)  # powers of two, so that decoding makes few tables


@functools.lru_cache(maxsize=8)
def numpy_angles(positions: int, size: int, base: float) -> tuple[Floats, Floats]:
    """Return the same for exactly this number of positions."""
    frequencies = base ** (-np.arange(0, size, 2, dtype=np.float64) / size)
    angle = np.arange(positions, dtype=np.float64)[:, None] * frequencies
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _mlx_table(positions: int, size: int, base: float) -> tuple[mx.array, mx.array]:
    cosines, sines = numpy_angles(positions, size, base)
    return mx.array(cosines), mx.array(sines)
