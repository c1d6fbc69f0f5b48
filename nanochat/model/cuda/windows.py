"""Overlapping windows of positions, read in place; the backward pass adds up their gradients in one kernel.

Shapes: B rows of a batch, T positions, F features of a position (heads times head size, flat or not).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import cast

import mlx.core as mx

from nanochat.model.cuda.launch import THREADS, VECTOR_INDEX, Kernel

Window = tuple[int, int]
"""First position, and the position after the last."""


def overlapping_windows(x: mx.array, windows: tuple[Window, ...]) -> tuple[mx.array, ...]:
    """Return views x[:, first:end] of (B, T, ...), one per window; together the windows cover all positions."""
    return _overlapping_windows(windows)(x)


@functools.cache
def _overlapping_windows(windows: tuple[Window, ...]) -> Callable[..., tuple[mx.array, ...]]:
    @mx.custom_function
    def run(x: mx.array) -> tuple[mx.array, ...]:
        return tuple(x[:, first:end] for first, end in windows)

    @run.vjp
    def _backward(x: mx.array, cotangents: tuple[mx.array, ...], _: tuple[mx.array, ...]) -> mx.array:
        batch, length = x.shape[:2]
        flat = [cotangent.reshape(-1) for cotangent in cotangents]
        vectors = x.size // 8
        (total,) = _kernel(windows)(
            *flat,
            sizes=[vectors],
            blocks=-(-vectors // THREADS),
            shapes=[x.shape],
            dtypes=[x.dtype],
            constants={"T": length, "F": x.size // (batch * length)},
        )
        return total

    return cast("Callable[..., tuple[mx.array, ...]]", run)


@functools.cache
def _kernel(windows: tuple[Window, ...]) -> Kernel:
    body = (
        VECTOR_INDEX
        + """
  const size_t row = at / ((size_t)T * F), within = at % ((size_t)T * F);
  float total[8] = {0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f}, part[8];
"""
    )
    for i, (first, end) in enumerate(windows):
        body += f"""
  if (within >= (size_t){first} * F && within < (size_t){end} * F) {{
    nanochat::load(part{i} + row * {end - first} * F + within - (size_t){first} * F, part);
#pragma unroll
    for (int e = 0; e < 8; ++e) total[e] += part[e];
  }}
"""
    body += "  nanochat::store(total_out + at, total);\n"
    return Kernel("sum_windows", tuple(f"part{i}" for i in range(len(windows))), ("total_out",), ("vectors",), body)
