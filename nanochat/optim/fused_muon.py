"""Muon on CUDA: kernels around the matrix products of the Polar Express iteration, in few passes over the matrices.

It computes what `muon.muon_update` computes, with three differences: the iteration runs in the gradients' dtype, all
norms come from one sum of squares per row or column, and a step with gradients that are not finite changes nothing.
Shapes: stacks of K matrices of (rows, cols).
"""

from __future__ import annotations

import mlx.core as mx

from nanochat.model.cuda.launch import THREADS, VECTOR_INDEX, Kernel
from nanochat.model.device import runs_kernels
from nanochat.optim.groups import Variant
from nanochat.optim.muon import NORM_FACTOR, TINY_NORM, TINY_VARIANCE, Orthogonalize, polar_express

_MOMENTUM = Kernel(
    "muon_momentum",
    ("gradient", "buffer", "momentum", "is_finite"),
    ("new_buffer", "direction"),
    ("vectors",),
    VECTOR_INDEX
    + """
  float g[8], m[8];
  nanochat::load(gradient + at, g);
  nanochat::load(buffer + at, m);
  const float kept = momentum[0];
  if (is_finite[0]) {
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      m[e] = kept * m[e] + (1.f - kept) * g[e];
      g[e] = (1.f - kept) * g[e] + kept * m[e];
    }
  }
  nanochat::store(new_buffer + at, m);
  nanochat::store(direction + at, g);
""",
)

_APPLY = Kernel(
    "muon_apply",
    ("parameter", "direction", "factor", "rates", "is_finite"),
    ("updated",),
    ("vectors",),
    VECTOR_INDEX
    + """
  float p[8], d[8];
  nanochat::load(parameter + at, p);
  nanochat::load(direction + at, d);
  if (is_finite[0]) {
    const size_t row = at / COLS, column = at % COLS;
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const float step = d[e] * factor[BY_ROW ? row : row / ROWS * COLS + column + e];
      p[e] -= rates[0] * step + (step * p[e] >= 0.f ? rates[1] * p[e] : 0.f);
    }
  }
  nanochat::store(updated + at, p);
""",
)

_ROW_SQUARES = Kernel(
    "row_squares",
    ("x",),
    ("squares",),
    ("rows",),
    """
  const int lane = threadIdx.x % 32, row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (row >= rows) return;
  float total = 0.f;
  for (int i = lane * nanochat::VECTOR; i < COLS; i += 32 * nanochat::VECTOR) {
    float values[8];
    nanochat::load(x + (size_t)row * COLS + i, values);
#pragma unroll
    for (int e = 0; e < 8; ++e) total += values[e] * values[e];
  }
  total = nanochat::sum_over_lanes<32>(total);
  if (lane == 0) squares[row] = total;
""",
)

_COLUMN_SQUARES = Kernel(
    "column_squares",
    ("x",),
    ("squares",),
    (),
    """
  constexpr int WARPS = 8, PARTS = (COLS + 255) / 256;  // a block takes 256 columns, a warp every eighth row
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int matrix = blockIdx.x / PARTS, column = blockIdx.x % PARTS * 256 + lane * nanochat::VECTOR;
  float total[8] = {0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f};
  if (column < COLS) {
#pragma unroll 4
    for (int row = warp; row < ROWS; row += WARPS) {
      float values[8];
      nanochat::load(x + ((size_t)matrix * ROWS + row) * COLS + column, values);
#pragma unroll
      for (int e = 0; e < 8; ++e) total[e] += values[e] * values[e];
    }
  }
  __shared__ float parts[WARPS][256];
#pragma unroll
  for (int e = 0; e < 8; ++e) parts[warp][lane * 8 + e] = total[e];
  __syncthreads();
  const int own = blockIdx.x % PARTS * 256 + threadIdx.x;
  if (own < COLS) {
    float sum = 0.f;
    for (int i = 0; i < WARPS; ++i) sum += parts[i][threadIdx.x];
    squares[(size_t)matrix * COLS + own] = sum;
  }
""",
)


def applies(stack: mx.array) -> bool:
    """Return whether this device runs the kernels and they support matrices of this shape."""
    return stack.shape[-1] % 8 == 0 and runs_kernels()


def fused_muon_update(
    parameter: mx.array,
    gradient: mx.array,
    momentum_buffer: mx.array,
    second_moment: mx.array,
    *,
    variant: Variant,
    lr: float | mx.array,
    momentum: float | mx.array,
    beta2: float,
    weight_decay: float | mx.array,
    is_finite: mx.array,
    orthogonalize: Orthogonalize = polar_express,
) -> tuple[mx.array, mx.array, mx.array]:
    """Return (parameter, momentum buffer, second moment) after one step, or unchanged if `is_finite` is False.

    Arguments as in `muon.muon_update`, with `is_finite` a bool scalar; the iteration has the gradient's dtype.
    """
    rows, cols = parameter.shape[-2:]
    guard = is_finite.reshape(1)
    kept = mx.array(momentum).astype(mx.float32).reshape(1)
    dtypes = [mx.float32, gradient.dtype]
    buffer, direction = _MOMENTUM.map(gradient, momentum_buffer, kept, guard, dtypes=dtypes)
    direction = orthogonalize(_normalized(direction, variant))
    squares = (_row_squares if rows >= cols else _column_squares)(direction)
    factor, second = _variance_reduction(squares, second_moment, variant=variant, shape=(rows, cols), beta2=beta2)
    rate = mx.array(lr * max(1.0, rows / cols) ** 0.5)
    rates, constants = mx.stack([rate, rate * weight_decay]), {"ROWS": rows, "COLS": cols, "BY_ROW": rows >= cols}
    (updated,) = _APPLY.map(parameter, direction, factor, rates, guard, dtypes=[mx.float32], constants=constants)
    return updated, buffer, mx.where(is_finite, second, second_moment)


def _normalized(x: mx.array, variant: Variant) -> mx.array:
    """Return x scaled to Frobenius norms below 1; in `current`, rows are first scaled to equal norms."""
    squares = _row_squares(x)
    scale = mx.ones_like(squares)
    if variant == "current":
        row_norms = mx.maximum(mx.sqrt(squares), TINY_NORM)
        scale = mx.sqrt(squares.sum(axis=1, keepdims=True)) / x.shape[-2] ** 0.5 / row_norms
    norm = mx.sqrt((squares * mx.square(scale)).sum(axis=1, keepdims=True))
    return x * (scale / (NORM_FACTOR[variant] * norm + TINY_NORM)).astype(x.dtype)


def _variance_reduction(
    squares: mx.array, second_moment: mx.array, *, variant: Variant, shape: tuple[int, int], beta2: float
) -> tuple[mx.array, mx.array]:
    """Return (factor on each row or column of the direction, new second moment) from its sums of squares."""
    rows, cols = shape
    terms, axes = (cols if rows >= cols else rows), (-2, -1)
    norm = mx.sqrt(squares.sum(axis=axes, keepdims=True))
    scale = min(rows, cols) ** 0.5 / mx.maximum(norm, TINY_NORM) if variant == "current" else mx.ones_like(norm)
    squares = squares * mx.square(scale)
    second = beta2 * second_moment + (1 - beta2) * squares / terms
    inverse = mx.rsqrt(mx.maximum(second, TINY_VARIANCE))
    evened_norm = mx.sqrt((squares * mx.square(inverse)).sum(axis=axes, keepdims=True))
    return scale * inverse * (norm * scale / mx.maximum(evened_norm, TINY_VARIANCE)), second


def _row_squares(x: mx.array) -> mx.array:
    """Return sums of squares (K, rows, 1) float32."""
    count, rows, cols = x.shape
    blocks = -(-count * rows // (THREADS // 32))
    sizes, constants = [count * rows], {"COLS": cols}
    shapes, dtypes = [(count, rows, 1)], [mx.float32]
    return _ROW_SQUARES(x, sizes=sizes, blocks=blocks, shapes=shapes, dtypes=dtypes, constants=constants)[0]


def _column_squares(x: mx.array) -> mx.array:
    """Return sums of squares (K, 1, cols) float32."""
    count, rows, cols = x.shape
    blocks, constants = count * -(-cols // 256), {"ROWS": rows, "COLS": cols}
    shapes, dtypes = [(count, 1, cols)], [mx.float32]
    return _COLUMN_SQUARES(x, sizes=[], blocks=blocks, shapes=shapes, dtypes=dtypes, constants=constants)[0]
