"""Fused projection to queries, keys and values on CUDA: one kernel rotates, norms and gates, another is its backward.

The fused projection of a token is a row of H query heads, G key heads, G value heads and, in layers with value
embeddings, the padded logits of the value gate. Norm and rotation commute, so the gradient needs only the results and
the factors of the norms. Shapes: N tokens, T positions of a row, D head size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import cast

import mlx.core as mx

from nanochat.model.config import GPTConfig
from nanochat.model.cuda.embedding import TokenIndex, sum_rows
from nanochat.model.cuda.launch import THREADS, Kernel
from nanochat.model.rope_tables import angles

_GROUP = """
  constexpr int LANES = D / 16, PARTS = (HEADS + PER - 1) / PER, HALF = D / 2;
  const int group = (blockIdx.x * blockDim.x + threadIdx.x) / LANES, lane = threadIdx.x % LANES;
  const int row = group / PARTS, begin = group % PARTS * PER;  // PER heads of a token share its angles
  const int low = lane * nanochat::VECTOR, high = HALF + low;
  float a[PER][8], b[PER][8];
"""

_SPLIT = Kernel(
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

_BACKWARD = Kernel(
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
_PER_GROUP = {"forward": 1, "backward": 1}
"""Heads per group of threads, by direction: more heads share more loads, but need more registers."""

Arrays = tuple[mx.array, ...]
GATE_PADDING = 64
"""Columns for the gate's logits in a fused projection: matrix products are faster at multiples of 64."""


def split_qkv(
    config: GPTConfig,
    projected: mx.array,
    table: mx.array | None = None,
    tokens: TokenIndex | None = None,
    *,
    positions: int,
    offsets: mx.array | None = None,
    end: int = 0,
) -> tuple[mx.array, mx.array, mx.array]:
    """Return queries (N, H * D), keys and values (N, G * D), ready for attention, in the projection's dtype.

    Differentiable without offsets.

    Args:
        config: head counts and architecture constants.
        projected: (N, (H + 2 G) * D), with a table (N, (H + 2 G) * D + GATE_PADDING).
        table: (V, G * D) value embeddings; rows are rounded to the projection's dtype, which the gradient has.
        tokens: needed if there is a table.
        positions: T.
        offsets: (B,) int32, the position of each row's first token; None if all are 0.
        end: with offsets, a number above the position of every token.
    """
    if offsets is not None:
        idx = None if tokens is None else tokens.idx
        queries, keys, values, _, _ = _launch(config, positions, projected, table, idx, offsets, end)
        return queries, keys, values if table is not None else projected[:, -config.n_kv_head * config.head_dim :]
    if table is None or tokens is None:
        queries, keys, values, _ = _plain_split(config, positions)(projected)
    else:
        queries, keys, values, _, _ = _gated_split(config, positions)(projected, table, *tokens)
    return queries, keys, values


@functools.cache
def _plain_split(config: GPTConfig, positions: int) -> Callable[..., Arrays]:
    @mx.custom_function
    def run(projected: mx.array) -> Arrays:
        queries, keys, _, inverse, _ = _launch(config, positions, projected, None, None)
        return queries, keys, projected[:, -config.n_kv_head * config.head_dim :], inverse

    @run.vjp
    def _backward(_: mx.array, cotangents: Arrays, outputs: Arrays) -> mx.array:
        queries, keys, _, inverse = outputs
        return _launch_backward(config, positions, cotangents, (queries, keys, inverse, inverse), None, None)

    return cast("Callable[..., Arrays]", run)


@functools.cache
def _gated_split(config: GPTConfig, positions: int) -> Callable[..., Arrays]:
    @mx.custom_function
    def run(projected: mx.array, table: mx.array, idx: mx.array, order: mx.array, ordered: mx.array) -> Arrays:
        return tuple(_launch(config, positions, projected, table, idx))

    @run.vjp
    def _backward(primals: Arrays, cotangents: Arrays, outputs: Arrays) -> Arrays:
        _, table, *index = primals
        tokens = TokenIndex(*index)
        queries, keys, _, inverse, gates = outputs
        d_projected = _launch_backward(
            config, positions, cotangents, (queries, keys, inverse, gates), table, tokens.idx
        )
        d_table = sum_rows(cotangents[2], tokens, rows=table.shape[0], weights=gates)
        return d_projected, d_table, *(mx.zeros_like(x) for x in index)

    return cast("Callable[..., Arrays]", run)


def _launch(
    config: GPTConfig,
    positions: int,
    projected: mx.array,
    table: mx.array | None,
    idx: mx.array | None,
    offsets: mx.array | None = None,
    end: int = 0,
) -> list[mx.array]:
    rows, gated = projected.shape[0], table is not None
    h, g, d = config.n_head, config.n_kv_head, config.head_dim
    cosines, sines = angles(max(positions, end), d, config.variant.rope_base)
    groups = rows * -(-(h + g + g * gated) // _PER_GROUP["forward"])
    return _SPLIT(
        projected,
        cosines,
        sines,
        projected if table is None else table,
        cosines if idx is None else idx,
        cosines if offsets is None else offsets,
        blocks=-(-groups * (d // 16) // THREADS),
        shapes=[(rows, h * d), (rows, g * d), (rows, g * d) if gated else (1,), (rows, h + g), (rows, g)],
        dtypes=[projected.dtype] * 3 + [mx.float32] * 2,
        sizes=[rows, positions],
        constants=qkv_constants(config, projected.shape[1], gated)
        | {"PER": _PER_GROUP["forward"], "CONTINUES": offsets is not None},
    )


def _launch_backward(
    config: GPTConfig,
    positions: int,
    cotangents: Arrays,
    kept: Arrays,
    table: mx.array | None,
    idx: mx.array | None,
) -> mx.array:
    queries, keys, inverse, gates = kept
    rows = queries.shape[0]
    cosines, sines = angles(positions, config.head_dim, config.variant.rope_base)
    heads = config.n_head + 2 * config.n_kv_head
    width = heads * config.head_dim + (GATE_PADDING if table is not None else 0)
    groups = rows * -(-heads // _PER_GROUP["backward"])
    return _BACKWARD(
        *cotangents[:3],
        queries,
        keys,
        inverse,
        gates,
        cosines,
        sines,
        queries if table is None else table,
        cosines if idx is None else idx,
        blocks=-(-groups * (config.head_dim // 16) // THREADS),
        shapes=[(rows, width)],
        dtypes=[queries.dtype],
        sizes=[rows, positions],
        constants=qkv_constants(config, width, table is not None) | {"PER": _PER_GROUP["backward"]},
    )[0]


def qkv_constants(config: GPTConfig, width: int, gated: bool) -> dict[str, int | float | bool]:
    """Return the sizes and numbers that kernels for a fused projection of `width` columns are compiled for."""
    variant = config.variant
    shape = {"H": config.n_head, "G": config.n_kv_head, "D": config.head_dim, "WIDTH": width, "GATED": gated}
    return shape | {"EPS": variant.norm_eps, "QK_SCALE": variant.qk_scale, "GATE_SCALE": variant.gate_scale}
