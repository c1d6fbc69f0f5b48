"""Sources of the kernels of `qkv`: splitting a fused projection into queries, keys and values, and its backward pass.

A group of D / 16 threads holds up to PER heads of a token: low and high are the two channels of each rotated pair.
"""

from __future__ import annotations

from nanochat.model.cuda.launch import Kernel

_GROUP = """
  constexpr int LANES = D / 16, PARTS = (HEADS + PER - 1) / PER, HALF = D / 2;
  const int group = (blockIdx.x * blockDim.x + threadIdx.x) / LANES, lane = threadIdx.x % LANES;
  const int row = group / PARTS, begin = group % PARTS * PER;  // PER heads of a token share its angles
  const int low = lane * nanochat::VECTOR, high = HALF + low;
  float a[PER][8], b[PER][8];
"""

SPLIT = Kernel(
    "split_qkv",
    ("projected", "cosines", "sines", "table", "idx", "offsets"),
    ("queries", "keys", "values", "inverse", "gates"),
    ("rows", "positions"),
    (
        "  constexpr int HEADS = GATED ? H + 2 * G : H + G;\n"
        + _GROUP
        + """
  float squares[PER];
  const auto* from = projected + (size_t)row * WIDTH;
#pragma unroll
  for (int i = 0; i < PER; ++i) {
    squares[i] = 0.f;
    if (row < rows && begin + i < HEADS) {
      nanochat::load(from + (begin + i) * D + low, a[i]);
      nanochat::load(from + (begin + i) * D + high, b[i]);
#pragma unroll
      for (int e = 0; e < 8; ++e) squares[i] += a[i][e] * a[i][e] + b[i][e] * b[i][e];
    }
  }
#pragma unroll
  for (int i = 0; i < PER; ++i) squares[i] = nanochat::sum_over_lanes<LANES>(squares[i]);
  if (row >= rows) return;
  float c[8], s[8];
  const int before = CONTINUES ? offsets[row / positions] : 0;
  const size_t angle = (size_t)(before + row % positions) * HALF + low;
  nanochat::load(cosines + angle, c);
  nanochat::load(sines + angle, s);
#pragma unroll
  for (int i = 0; i < PER; ++i) {
    const int head = begin + i;
    if (head < H + G) {
      const float scale = rsqrtf(squares[i] / D + EPS), factor = scale * QK_SCALE;
      if (lane == 0) inverse[(size_t)row * (H + G) + head] = scale;
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const float x = a[i][e] * factor, y = b[i][e] * factor;
        a[i][e] = x * c[e] + y * s[e];
        b[i][e] = y * c[e] - x * s[e];
      }
      auto* to = head < H ? queries + ((size_t)row * H + head) * D : keys + ((size_t)row * G + head - H) * D;
      nanochat::store(to + low, a[i]);
      nanochat::store(to + high, b[i]);
    } else if (GATED && head < HEADS) {
      const int g = head - H - G;
      const float gate = GATE_SCALE / (1.f + __expf(-nanochat::to_float(from[HEADS * D + g])));
      const auto* own = table + ((size_t)idx[row] * G + g) * D;
      float first[8], second[8];
      nanochat::load(own + low, first);
      nanochat::load(own + high, second);
      nanochat::round_like(values, first);
      nanochat::round_like(values, second);
#pragma unroll
      for (int e = 0; e < 8; ++e) { a[i][e] += gate * first[e]; b[i][e] += gate * second[e]; }
      auto* to = values + ((size_t)row * G + g) * D;
      nanochat::store(to + low, a[i]);
      nanochat::store(to + high, b[i]);
      if (lane == 0) gates[(size_t)row * G + g] = gate;
    }
  }
"""
    ),
)

BACKWARD = Kernel(
    "split_qkv_backward",
    ("d_queries", "d_keys", "d_values", "queries", "keys", "inverse", "gates", "cosines", "sines", "table", "idx"),
    ("d_projected",),
    ("rows", "positions"),
    (
        "  constexpr int HEADS = H + 2 * G;\n"
        + _GROUP
        + """
  float first[PER][8], second[PER][8], dot[PER];
#pragma unroll
  for (int i = 0; i < PER; ++i) {
    const int head = begin + i;
    dot[i] = 0.f;
    if (row < rows && head < HEADS) {
      const bool is_value = head >= H + G;
      const int g = is_value ? head - H - G : head < H ? head : head - H;
      const size_t at = ((size_t)row * (head >= H ? G : H) + g) * D;
      const auto* gradient = is_value ? d_values + at : head < H ? d_queries + at : d_keys + at;
      nanochat::load(gradient + low, a[i]);
      nanochat::load(gradient + high, b[i]);
      if (!is_value) {
        const auto* other = head < H ? queries + at : keys + at;
        nanochat::load(other + low, first[i]);
        nanochat::load(other + high, second[i]);
      } else if (GATED) {
        const auto* own = table + ((size_t)idx[row] * G + g) * D;
        nanochat::load(own + low, first[i]);
        nanochat::load(own + high, second[i]);
        nanochat::round_like(d_projected, first[i]);
        nanochat::round_like(d_projected, second[i]);
      }
      if (GATED || !is_value) {
#pragma unroll
        for (int e = 0; e < 8; ++e) dot[i] += a[i][e] * first[i][e] + b[i][e] * second[i][e];
      }
    }
  }
#pragma unroll
  for (int i = 0; i < PER; ++i) dot[i] = nanochat::sum_over_lanes<LANES>(dot[i]);
  if (row >= rows) return;
  float c[8], s[8];
  const size_t angle = (size_t)(row % positions) * HALF + low;
  nanochat::load(cosines + angle, c);
  nanochat::load(sines + angle, s);
  auto* to = d_projected + (size_t)row * WIDTH;
#pragma unroll
  for (int i = 0; i < PER; ++i) {
    const int head = begin + i, g = head - H - G;
    if (head >= HEADS) break;
    if (head < H + G) {
      const float factor = inverse[(size_t)row * (H + G) + head] * QK_SCALE, share = dot[i] / (D * QK_SCALE * QK_SCALE);
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const float x = (a[i][e] - first[i][e] * share) * factor, y = (b[i][e] - second[i][e] * share) * factor;
        a[i][e] = x * c[e] - y * s[e];
        b[i][e] = x * s[e] + y * c[e];
      }
    } else if (GATED) {
      if (lane == 0) {
        const float gate = gates[(size_t)row * G + g];
        to[HEADS * D + g] = dot[i] * gate * (1.f - gate / GATE_SCALE);
      }
      if (g == 0) for (int j = HEADS * D + G + lane; j < WIDTH; j += LANES) to[j] = 0.f;
    }
    nanochat::store(to + head * D + low, a[i]);
    nanochat::store(to + head * D + high, b[i]);
  }
"""
    ),
)
