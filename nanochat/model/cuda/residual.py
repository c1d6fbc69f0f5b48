"""Residual-stream kernels for CUDA: add a branch's output, mix in the token embedding and norm, in one pass.

`add_norm` and `mix_norm` compute what `gpt` writes as `x + y`, `mix_in_embedding` and `norm`.
Shapes: N tokens, C width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import cast

import mlx.core as mx

from nanochat.model.cuda.launch import THREADS, Kernel

_WARPS = THREADS // 32
ROW = """
  constexpr int VECTORS = C / nanochat::VECTOR, PER_LANE = (VECTORS + 31) / 32;
  const int lane = threadIdx.x % 32;
  const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
"""
"""The beginning of a kernel in which a warp takes a row of C values."""
STORE_NORMED = """
  total = nanochat::sum_over_lanes<32>(total);
  const float scale = rsqrtf(total / C + EPS);
  if (lane == 0) inverse[row] = scale;
#pragma unroll
  for (int j = 0; j < PER_LANE; ++j) {
    const int i = lane + 32 * j;
    if (i < VECTORS) {
#pragma unroll
      for (int e = 0; e < 8; ++e) values[j][e] *= scale;
      nanochat::store(normed + (size_t)row * C + i * nanochat::VECTOR, values[j]);
    }
  }
"""
"""The end of a kernel that norms its row: `values`, of which `total` is each lane's sum of squares."""

_MIX_NORM = Kernel(
    "mix_norm",
    ("x", "y", "first", "residual_factor", "first_factor"),
    ("added", "mixed", "normed", "inverse"),
    ("rows",),
    ROW
    + """
  if (row >= rows) return;
  const float r = MIXES ? nanochat::to_float(residual_factor[0]) : 1.f,
              l = MIXES ? nanochat::to_float(first_factor[0]) : 0.f;
  float values[PER_LANE][8], total = 0.f;
#pragma unroll
  for (int j = 0; j < PER_LANE; ++j) {
    const int i = lane + 32 * j;
    if (i < VECTORS) {
      const size_t at = (size_t)row * C + i * nanochat::VECTOR;
      float other[8];
      nanochat::load(x + at, values[j]);
      if (ADDS) {
        nanochat::load(y + at, other);
#pragma unroll
        for (int e = 0; e < 8; ++e) values[j][e] += other[e];
        nanochat::store(added + at, values[j]);
      }
      if (MIXES) {
        nanochat::load(first + at, other);
#pragma unroll
        for (int e = 0; e < 8; ++e) values[j][e] = r * values[j][e] + l * other[e];
        nanochat::store(mixed + at, values[j]);
      }
#pragma unroll
      for (int e = 0; e < 8; ++e) total += values[j][e] * values[j][e];
    }
  }
"""
    + STORE_NORMED,
)

_BACKWARD = Kernel(
    "mix_norm_backward",
    ("d_mixed", "d_normed", "normed", "inverse", "added", "first", "d_first_in", "residual_factor", "first_factor"),
    ("d_added", "d_first", "sums"),
    ("rows",),
    ROW
    + """
  float gradient[PER_LANE][8], unit[PER_LANE][8], dot = 0.f, sum_residual = 0.f, sum_first = 0.f;
  const bool is_row = row < rows;
#pragma unroll
  for (int j = 0; j < PER_LANE; ++j) {
    const int i = lane + 32 * j;
    if (is_row && i < VECTORS) {
      const size_t at = (size_t)row * C + i * nanochat::VECTOR;
      nanochat::load(d_normed + at, gradient[j]);
      nanochat::load(normed + at, unit[j]);
#pragma unroll
      for (int e = 0; e < 8; ++e) dot += gradient[j][e] * unit[j][e];
    }
  }
  dot = nanochat::sum_over_lanes<32>(dot) / C;
  const float scale = is_row ? inverse[row] : 0.f;
  const float r = MIXES ? nanochat::to_float(residual_factor[0]) : 1.f,
              l = MIXES ? nanochat::to_float(first_factor[0]) : 0.f;
#pragma unroll
  for (int j = 0; j < PER_LANE; ++j) {
    const int i = lane + 32 * j;
    if (is_row && i < VECTORS) {
      const size_t at = (size_t)row * C + i * nanochat::VECTOR;
      float other[8] = {0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f};
      if (CONTINUES) nanochat::load(d_mixed + at, other);
#pragma unroll
      for (int e = 0; e < 8; ++e) gradient[j][e] = other[e] + scale * (gradient[j][e] - unit[j][e] * dot);
      if (MIXES) {
        float out[8];
        nanochat::load(added + at, other);
#pragma unroll
        for (int e = 0; e < 8; ++e) sum_residual += gradient[j][e] * other[e];
        nanochat::load(first + at, other);
        nanochat::load(d_first_in + at, out);
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          sum_first += gradient[j][e] * other[e];
          out[e] += l * gradient[j][e];
          gradient[j][e] *= r;
        }
        nanochat::store(d_first + at, out);
      }
      nanochat::store(d_added + at, gradient[j]);
    }
  }
  if (MIXES) {
    __shared__ float parts[2][32];
    sum_residual = nanochat::sum_over_lanes<32>(sum_residual);
    sum_first = nanochat::sum_over_lanes<32>(sum_first);
    if (lane == 0) { parts[0][threadIdx.x / 32] = sum_residual; parts[1][threadIdx.x / 32] = sum_first; }
    __syncthreads();
    if (threadIdx.x < 2) {
      float total = 0.f;
      for (int i = 0; i < blockDim.x / 32; ++i) total += parts[threadIdx.x][i];
      sums[2 * blockIdx.x + threadIdx.x] = total;
    }
  }
""",
)

Arrays = tuple[mx.array, ...]


def add_norm(x: mx.array, y: mx.array, eps: float) -> tuple[mx.array, mx.array]:
    """Return (x + y, its RMS norm), both (N, C) in x's dtype; gradients reach x and y."""
    outputs = _add_norm(eps)(x, y)
    return outputs[0], outputs[1]


def mix_norm(
    x: mx.array, y: mx.array | None, first: mx.array, factors: tuple[mx.array, mx.array], eps: float
) -> tuple[mx.array, mx.array, mx.array]:
    """Return (mixed, its RMS norm, first) for mixed = r * (x + y) + l * first, all (N, C) in x's dtype.

    The returned `first` has the values of the argument. Use it instead of the argument from then on: its gradients then
    add up in the backward pass of this kernel.

    Args:
        x: the residual stream.
        y: a branch's output to add to x; None if there is none.
        first: the normed embedding.
        factors: r and l, float32 of shape (1,).
        eps: epsilon of the norm.
    """
    given = (x, first, *factors) if y is None else (x, first, *factors, y)
    outputs = _mix_norm(eps, adds=y is not None)(*given)
    return outputs[0], outputs[1], outputs[2]


@functools.cache
def _add_norm(eps: float) -> Callable[..., Arrays]:
    @mx.custom_function
    def run(x: mx.array, y: mx.array) -> Arrays:
        added, _, normed, inverse = _launch(x, y, x, None, eps)
        return added, normed, inverse

    @run.vjp
    def _backward(_: Arrays, cotangents: Arrays, outputs: Arrays) -> Arrays:
        d_added = _launch_backward(cotangents[0], cotangents[1], outputs[1], outputs[2], None, None)[0]
        return d_added, d_added

    return cast("Callable[..., Arrays]", run)


@functools.cache
def _mix_norm(eps: float, *, adds: bool) -> Callable[..., Arrays]:
    @mx.custom_function
    def run(x: mx.array, first: mx.array, r: mx.array, l: mx.array, y: mx.array | None = None) -> Arrays:
        added, mixed, normed, inverse = _launch(x, y, first, (r, l), eps)
        return mixed, normed, first, inverse, added

    @run.vjp
    def _backward(primals: Arrays, cotangents: Arrays, outputs: Arrays) -> Arrays:
        x, first, r, l = primals[:4]
        added = outputs[4] if adds else x
        d_added, d_first, sums = _launch_backward(
            cotangents[0], cotangents[1], outputs[1], outputs[3], (added, first, cotangents[2]), (r, l)
        )
        gradients = (d_added, d_first, sums[0:1], sums[1:2])
        return (*gradients, d_added) if adds else gradients

    return cast("Callable[..., Arrays]", run)


def norm_backward(d_normed: mx.array, normed: mx.array, inverse: mx.array) -> mx.array:
    """Return the gradient (N, C) of a norm's input from that of its result, and the factor of each row (N,)."""
    return _launch_backward(None, d_normed, normed, inverse, None, None)[0]


def _launch(
    x: mx.array, y: mx.array | None, first: mx.array, factors: tuple[mx.array, mx.array] | None, eps: float
) -> list[mx.array]:
    rows, width = x.shape
    nothing = (1,)
    return _MIX_NORM(
        x,
        x if y is None else y,
        first,
        *((x, x) if factors is None else factors),
        blocks=-(-rows // _WARPS),
        shapes=[x.shape if y is not None else nothing, x.shape if factors is not None else nothing, x.shape, (rows,)],
        dtypes=[x.dtype, x.dtype, x.dtype, mx.float32],
        sizes=[rows],
        constants={"C": width, "ADDS": y is not None, "MIXES": factors is not None, "EPS": eps},
    )


def _launch_backward(
    d_mixed: mx.array | None,
    d_normed: mx.array,
    normed: mx.array,
    inverse: mx.array,
    streams: tuple[mx.array, mx.array, mx.array] | None,
    factors: tuple[mx.array, mx.array] | None,
) -> tuple[mx.array, mx.array, mx.array]:
    """Return the gradients of x + y, of `first`, and of the two factors as (2,); the last two only with factors."""
    rows, width = normed.shape
    blocks = -(-rows // _WARPS)
    d_added, d_first, sums = _BACKWARD(
        d_normed if d_mixed is None else d_mixed,
        d_normed,
        normed,
        inverse,
        *((normed, normed, normed) if streams is None else streams),
        *((inverse, inverse) if factors is None else factors),
        blocks=blocks,
        shapes=[normed.shape, (1,) if factors is None else normed.shape, (1,) if factors is None else (blocks, 2)],
        dtypes=[normed.dtype, normed.dtype, mx.float32],
        sizes=[rows],
        constants={"C": width, "CONTINUES": d_mixed is not None, "MIXES": factors is not None},
    )
    return d_added, d_first, sums if factors is None else sums.sum(axis=0)
