"""CUDA kernels for what Muon does around its matrix products, on stacks of matrices (`fused_muon`)."""

from __future__ import annotations

import functools

from nanochat.model.cuda.launch import VECTOR_INDEX, Kernel

_MOMENTUM = """
  float g[8], m[8];
  nanochat::load(gradient + within, g);
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
"""

APPLY = Kernel(
    "muon_apply",
    ("parameter", "direction", "factor", "lr", "weight_decay", "is_finite"),
    ("updated",),
    ("vectors",),
    VECTOR_INDEX
    + """
  float p[8], d[8];
  nanochat::load(parameter + at, p);
  nanochat::load(direction + at, d);
  if (is_finite[0]) {
    const size_t row = at / COLS, column = at % COLS;
    const float rate = lr[0] * ASPECT, decay = rate * weight_decay[0];
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const float step = d[e] * factor[BY_ROW ? row : row / ROWS * COLS + column + e];
      p[e] -= rate * step + (step * p[e] >= 0.f ? decay * p[e] : 0.f);
    }
  }
  nanochat::store(updated + at, p);
""",
)

ROW_SCALES = Kernel(
    "muon_row_scales",
    ("squares",),
    ("scales",),
    (),
    """
  const float* from = squares + (size_t)blockIdx.x * ROWS;  // a block takes a matrix
  float total = 0.f, scaled = 0.f;
  for (int i = threadIdx.x; i < ROWS; i += blockDim.x) total += from[i];
  total = nanochat::sum_over_block(total);
  if (EVENS) {
    for (int i = threadIdx.x; i < ROWS; i += blockDim.x) {
      const float even = sqrtf(total / ROWS) / fmaxf(sqrtf(from[i]), TINY);
      scaled += from[i] * even * even;
    }
    __syncthreads();
    scaled = nanochat::sum_over_block(scaled);
  } else {
    scaled = total;
  }
  const float inverse = 1.f / (FACTOR * sqrtf(scaled) + TINY);
  for (int i = threadIdx.x; i < ROWS; i += blockDim.x) {
    const float even = EVENS ? sqrtf(total / ROWS) / fmaxf(sqrtf(from[i]), TINY) : 1.f;
    scales[(size_t)blockIdx.x * ROWS + i] = even * inverse;
  }
""",
)

FACTORS = Kernel(
    "muon_factors",
    ("squares", "second", "is_finite"),
    ("factors", "new_second"),
    (),
    """
  const size_t begin = (size_t)blockIdx.x * COUNT;  // a block takes a matrix
  float total = 0.f, evened = 0.f;
  for (int i = threadIdx.x; i < COUNT; i += blockDim.x) total += squares[begin + i];
  const float norm = sqrtf(nanochat::sum_over_block(total));
  const float scale = RENORMALIZES ? sqrtf((float)RANK) / fmaxf(norm, TINY) : 1.f;
  for (int i = threadIdx.x; i < COUNT; i += blockDim.x) {
    const float square = squares[begin + i] * scale * scale, old = second[begin + i];
    const float updated = BETA2 * old + (1.f - BETA2) * square / TERMS;
    new_second[begin + i] = is_finite[0] ? updated : old;
    evened += square / fmaxf(updated, TINY_VARIANCE);
  }
  __syncthreads();
  evened = sqrtf(nanochat::sum_over_block(evened));
  const float restored = scale * norm * scale / fmaxf(evened, TINY_VARIANCE);
  for (int i = threadIdx.x; i < COUNT; i += blockDim.x) {
    const float square = squares[begin + i] * scale * scale;
    const float updated = BETA2 * second[begin + i] + (1.f - BETA2) * square / TERMS;
    factors[begin + i] = restored * rsqrtf(fmaxf(updated, TINY_VARIANCE));
  }
""",
)

ROW_SQUARES = Kernel(
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

COLUMN_SQUARES = Kernel(
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


@functools.cache
def momentum_kernel(count: int, size: int) -> Kernel:
    """Return the kernel for `count` gradients of `size` values, which it reads in place instead of as a stack."""
    names = tuple(f"gradient{i}" for i in range(count))
    cases = "".join(f"    case {i}: gradient = {name}; break;\n" for i, name in enumerate(names))
    chosen = f"""
  const size_t within = at % {size};
  const auto* gradient = gradient0;
  switch (at / {size}) {{
{cases}  }}
"""
    inputs = ("buffer", *names, "momentum", "is_finite")
    return Kernel("muon_momentum", inputs, ("new_buffer", "direction"), ("vectors",), VECTOR_INDEX + chosen + _MOMENTUM)
