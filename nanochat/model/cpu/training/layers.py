"""The parts of a block that are not matrix products, and their gradients, in NumPy with few passes and in place.

Each forward function returns what its gradient needs. Arrays are float32. Shapes: N tokens (B rows of T), C width,
H heads of size D.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nanochat.model.rope_tables import Floats, numpy_angles

Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True)
class KeptLayer:
    """The values of a block that the backward pass needs."""

    before: Floats
    """The residual stream before the block."""
    attention_input: Floats
    attention_factor: Floats
    qkv_weight: Floats
    queries: Floats
    keys: Floats
    query_factor: Floats
    key_factor: Floats
    values: Floats
    gate: Floats | None
    value_rows: Floats | None
    mixed: Floats
    inverses: Floats
    mlp_input: Floats
    mlp_factor: Floats
    hidden: Floats
    """After relu, before the square."""


def norm(x: Floats, eps: float) -> tuple[Floats, Floats]:
    """Return x / sqrt(mean(x^2) + eps) over the last axis, and the factor that x was multiplied by, axes kept."""
    factor = _norm_factor(x, eps)
    return x * factor, factor


def _norm_factor(x: Floats, eps: float) -> Floats:
    factor: Floats = (np.vecdot(x, x) / np.float32(x.shape[-1]) + np.float32(eps))[..., None]
    np.sqrt(factor, out=factor)
    np.reciprocal(factor, out=factor)
    return factor


def norm_gradient(gradient: Floats, normed: Floats, factor: Floats) -> Floats:
    """Return the gradient for x from that for y = norm(x): factor * (gradient - y mean(y * gradient)), in place."""
    share = (np.vecdot(gradient, normed) / np.float32(normed.shape[-1]))[..., None]
    gradient -= normed * share
    gradient *= factor
    return gradient


def rotate_and_norm(x: Floats, *, base: float, eps: float, scale: float) -> tuple[Floats, Floats]:
    """Return queries or keys (B, T, H, D), rotated, normed and times `scale`, and the norm's factor (B, T, H, 1).

    A rotation keeps the norm, so the factor is that of x itself.
    """
    cosine, sine = _angles(x, base)
    factor = _norm_factor(x, eps)
    rotated = _rotated(x, cosine, sine)
    rotated *= factor if scale == 1.0 else factor * np.float32(scale)
    return rotated, factor


def rotate_and_norm_gradient(gradient: Floats, y: Floats, factor: Floats, *, base: float, scale: float) -> Floats:
    """Return the gradient for x (B, T, H, D) from that for y = rotate_and_norm(x), which is overwritten."""
    cosine, sine = _angles(y, base)
    share = (np.vecdot(gradient, y) / np.float32(y.shape[-1] * scale**2))[..., None]
    gradient -= y * share
    gradient *= factor if scale == 1.0 else factor * np.float32(scale)
    return _rotated(gradient, cosine, -sine)


def _angles(x: Floats, base: float) -> tuple[Floats, Floats]:
    """Return cosine and sine of the angles of x (B, T, H, D) as (T, 1, D / 2)."""
    cosines, sines = numpy_angles(x.shape[1], x.shape[-1], base)
    return cosines[:, None], sines[:, None]


def _rotated(x: Floats, cosine: Floats, sine: Floats) -> Floats:
    """Return x rotated by minus the angles, as nanochat does; channels j and j + D / 2 are a pair."""
    half = x.shape[-1] // 2
    first, second, rotated = x[..., :half], x[..., half:], np.empty(x.shape, dtype=np.float32)
    np.multiply(first, cosine, out=rotated[..., :half])
    rotated[..., :half] += second * sine
    np.multiply(second, cosine, out=rotated[..., half:])
    rotated[..., half:] -= first * sine
    return rotated


def sigmoid(x: Floats) -> Floats:
    """Return 1 / (1 + e^-x)."""
    return np.reciprocal(np.exp(-x) + np.float32(1))


def row_gradient(tokens: Tokens, gradient: Floats, rows: int) -> Floats:
    """Return the gradient of a table (rows, C) from that for its rows `tokens` (N,) that were read, (N, C)."""
    order = np.argsort(tokens, kind="stable")
    ordered = tokens[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    table = np.zeros((rows, gradient.shape[-1]), dtype=np.float32)
    table[ordered[starts]] = np.add.reduceat(gradient[order], starts, axis=0)
    return table


def dot(first: Floats, second: Floats) -> Floats:
    """Return the sum of the products of two arrays' elements, summed in rows first."""
    return np.asarray(np.vecdot(first, second).sum(dtype=np.float64), dtype=np.float32)
