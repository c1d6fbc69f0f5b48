"""Overlapping stretches of positions, read in place; their gradients are added up in one pass.

Shapes: B rows of a batch, T positions, F features of a position (heads and their size, flat or not).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import cast

import mlx.core as mx

from nanochat.model.cuda.launch import THREADS, Kernel

Span = tuple[int, int]
"""First position, and the one behind the last."""


def spans_of(x: mx.array, spans: tuple[Span, ...]) -> tuple[mx.array, ...]:
    """Return x[:, first:end] of (B, T, ...) for each span, views; together the spans cover all positions."""
    return _spans_of(spans)(x)


@functools.cache
def _spans_of(spans: tuple[Span, ...]) -> Callable[..., tuple[mx.array, ...]]:
    @mx.custom_function
    def run(x: mx.array) -> tuple[mx.array, ...]:
        return tuple(x[:, first:end] for first, end in spans)

    @run.vjp
    def _backward(x: mx.array, cotangents: tuple[mx.array, ...], _: tuple[mx.array, ...]) -> mx.array:
        batch, length = x.shape[:2]
        flat = [cotangent.reshape(-1) for cotangent in cotangents]
        vectors = x.size // 8
        (total,) = _kernel(spans)(
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
def _kernel(spans: tuple[Span, ...]) -> Kernel:
    body = """
  const int vector = blockIdx.x * blockDim.x + threadIdx.x;
  if (vector >= vectors) return;
  const size_t at = (size_t)vector * nanochat::VECTOR;
  const size_t row = at / ((size_t)T * F), within = at % ((size_t)T * F);
  float total[8] = {0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f}, part[8];
"""
    for i, (first, end) in enumerate(spans):
        body += f"""
  if (within >= (size_t){first} * F && within < (size_t){end} * F) {{
    nanochat::load(part{i} + row * {end - first} * F + within - (size_t){first} * F, part);
#pragma unroll
    for (int e = 0; e < 8; ++e) total[e] += part[e];
  }}
"""
    body += "  nanochat::store(total_out + at, total);\n"
    return Kernel("sum_spans", tuple(f"part{i}" for i in range(len(spans))), ("total_out",), ("vectors",), body)
