"""Sources of the kernels of `qkv`: splitting a fused projection into queries, keys and values, and its backward pass.

A group of D / 16 threads holds a head of a token: low and high are the two channels of each rotated pair.
"""

from __future__ import annotations

from nanochat.model.cuda.launch import Kernel

_GROUP = """
  constexpr int LANES = D / 16, HALF = D / 2;
  const int group = (blockIdx.x * blockDim.x + threadIdx.x) / LANES, lane = threadIdx.x % LANES;
  const int row = group / HEADS, head = group % HEADS;
  const int low = lane * nanochat::VECTOR, high = HALF + low;
  float a[8], b[8];
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
  float squares = 0.f;
  const auto* from = projected + (size_t)row * WIDTH;
  if (row < rows) {
    nanochat::load(from + head * D + low, a);
    nanochat::load(from + head * D + high, b);
#pragma unroll
    for (int e = 0; e < 8; ++e) squares += a[e] * a[e] + b[e] * b[e];
  }
  squares = nanochat::sum_over_lanes<LANES>(squares);
  if (row >= rows) return;
  float c[8], s[8];
  const int before = CONTINUES ? offsets[row / positions] : 0;
  const size_t angle = (size_t)(before + row % positions) * HALF + low;
  nanochat::load(cosines + angle, c);
  nanochat::load(sines + angle, s);
  if (head < H + G) {
    const float scale = rsqrtf(squares / D + EPS), factor = scale * QK_SCALE;
    if (lane == 0) inverse[(size_t)row * (H + G) + head] = scale;
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const float x = a[e] * factor, y = b[e] * factor;
      a[e] = x * c[e] + y * s[e];
      b[e] = y * c[e] - x * s[e];
    }
    auto* to = head < H ? queries + ((size_t)row * H + head) * D : keys + ((size_t)row * G + head - H) * D;
    nanochat::store(to + low, a);
    nanochat::store(to + high, b);
  } else if (GATED) {
    const int g = head - H - G;
    const float gate = GATE_SCALE / (1.f + __expf(-nanochat::to_float(from[HEADS * D + g])));
    const auto* own = table + ((size_t)idx[row] * G + g) * D;
    float first[8], second[8];
    nanochat::load(own + low, first);
    nanochat::load(own + high, second);
    nanochat::round_like(values, first);
    nanochat::round_like(values, second);
#pragma unroll
    for (int e = 0; e < 8; ++e) { a[e] += gate * first[e]; b[e] += gate * second[e]; }
    auto* to = values + ((size_t)row * G + g) * D;
    nanochat::store(to + low, a);
    nanochat::store(to + high, b);
    if (lane == 0) gates[(size_t)row * G + g] = gate;
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
  float first[8], second[8], dot = 0.f;
  if (row < rows) {
    const bool is_value = head >= H + G;
    const int own_head = is_value ? head - H - G : head < H ? head : head - H;
    const size_t at = ((size_t)row * (head >= H ? G : H) + own_head) * D;
    const auto* gradient = is_value ? d_values + at : head < H ? d_queries + at : d_keys + at;
    nanochat::load(gradient + low, a);
    nanochat::load(gradient + high, b);
    if (!is_value) {
      const auto* other = head < H ? queries + at : keys + at;
      nanochat::load(other + low, first);
      nanochat::load(other + high, second);
    } else if (GATED) {
      const auto* own = table + ((size_t)idx[row] * G + own_head) * D;
      nanochat::load(own + low, first);
      nanochat::load(own + high, second);
      nanochat::round_like(d_projected, first);
      nanochat::round_like(d_projected, second);
    }
    if (GATED || !is_value) {
#pragma unroll
      for (int e = 0; e < 8; ++e) dot += a[e] * first[e] + b[e] * second[e];
    }
  }
  dot = nanochat::sum_over_lanes<LANES>(dot);
  if (row >= rows) return;
  float c[8], s[8];
  const size_t angle = (size_t)(row % positions) * HALF + low;
  nanochat::load(cosines + angle, c);
  nanochat::load(sines + angle, s);
  auto* to = d_projected + (size_t)row * WIDTH;
  const int g = head - H - G;  // of the values
  if (head < H + G) {
    const float factor = inverse[(size_t)row * (H + G) + head] * QK_SCALE, share = dot / (D * QK_SCALE * QK_SCALE);
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const float x = (a[e] - first[e] * share) * factor, y = (b[e] - second[e] * share) * factor;
      a[e] = x * c[e] - y * s[e];
      b[e] = x * s[e] + y * c[e];
    }
  } else if (GATED) {
    if (lane == 0) {
      const float gate = gates[(size_t)row * G + g];
      to[HEADS * D + g] = dot * gate * (1.f - gate / GATE_SCALE);
    }
    if (g == 0) for (int j = HEADS * D + G + lane; j < WIDTH; j += LANES) to[j] = 0.f;
  }
  nanochat::store(to + head * D + low, a);
  nanochat::store(to + head * D + high, b);
"""
    ),
)
