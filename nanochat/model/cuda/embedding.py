"""Normed token embeddings on CUDA, with a gradient that takes one pass over the tokens.

Rows are read from the float32 table and rounded, so that no rounded copy of the table is needed.
Tokens are sorted once per step, and a kernel adds up the gradients of each token in that order. The sums are float32
and their order is fixed, so that the same step gives the same bits. Shapes: N tokens, V rows of the table, W its width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, cast

import mlx.core as mx

from nanochat.model.cuda.launch import THREADS, Kernel
from nanochat.model.cuda.residual import ROW, STORE_NORMED, norm_backward

_EMBED = Kernel(
    "embed_norm",
    ("table", "idx"),
    ("normed", "inverse"),
    ("rows",),
    ROW
    + """
  if (row >= rows) return;
  const auto* from = table + (size_t)idx[row] * C;
  float values[PER_LANE][8], total = 0.f;
#pragma unroll
  for (int j = 0; j < PER_LANE; ++j) {
    const int i = lane + 32 * j;
    if (i < VECTORS) {
      nanochat::load(from + i * nanochat::VECTOR, values[j]);
      nanochat::round_like(normed, values[j]);
#pragma unroll
      for (int e = 0; e < 8; ++e) total += values[j][e] * values[j][e];
    }
  }
"""
    + STORE_NORMED,
)

_TAKE = Kernel(
    "take",
    ("values", "order"),
    ("taken",),
    ("count",),
    """
  const int at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at < count) taken[at] = values[order[at]];
""",
)
"""`values[order]`, for which MLX would take seconds to compile a kernel."""

_SUM_ROWS = Kernel(
    "sum_rows",
    ("gradients", "order", "ordered", "weights"),
    ("sums",),
    ("count",),
    """
  constexpr int VECTORS = W / nanochat::VECTOR, PER_LANE = (VECTORS + 31) / 32, WARPS = 8, UNROLL = 4;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, first = blockIdx.x * WARPS + warp;
  float total[PER_LANE][8];
  auto clear = [&]() {
    for (int j = 0; j < PER_LANE; ++j)
      for (int e = 0; e < 8; ++e) total[j][e] = 0.f;
  };
  auto add = [&](int at) {  // the gradient at position order[at]
    const size_t position = __ldg(order + at);
#pragma unroll
    for (int j = 0; j < PER_LANE; ++j) {
      const int i = lane + 32 * j;
      if (i < VECTORS) {
        float values[8];
        nanochat::load(gradients + position * W + i * nanochat::VECTOR, values);
        const float weight =
            WEIGHTED ? nanochat::to_float(__ldg(weights + position * HEADS + i * nanochat::VECTOR / (W / HEADS))) : 1.f;
#pragma unroll
        for (int e = 0; e < 8; ++e) total[j][e] += weight * values[e];
      }
    }
  };
  // A warp takes each position at which the run of a token begins.
  int length = 0;  // of the run, at most 32
  if (first < count && (first == 0 || ordered[first - 1] != ordered[first])) {
    const int at = first + lane < count ? first + lane : count - 1;
    const unsigned same = __ballot_sync(0xffffffffu, first + lane < count && ordered[at] == ordered[first]);
    length = same == 0xffffffffu ? 32 : __ffs(~same) - 1;
  }
  if (length > 0 && length < 32) {
    clear();
#pragma unroll UNROLL
    for (int i = 0; i < length; ++i) add(first + i);
    for (int j = 0; j < PER_LANE; ++j) {
      const int i = lane + 32 * j;
      if (i < VECTORS) nanochat::store(sums + (size_t)ordered[first] * W + i * nanochat::VECTOR, total[j]);
    }
  }
  // All warps of the block share a long run, and add up their sums one after the other.
  __shared__ int long_runs[WARPS];
  __shared__ float shared[W];
  if (lane == 0) long_runs[warp] = length == 32 ? first : -1;
  __syncthreads();
  for (int run = 0; run < WARPS; ++run) {
    const int begin = long_runs[run];
    if (begin < 0) continue;
    const int token = ordered[begin];
    int end = begin + 32, high = count;  // the end of the run is between them
    while (end < high) {
      const int middle = (end + high) / 2;
      if (__ldg(ordered + middle) == token) end = middle + 1; else high = middle;
    }
    clear();
#pragma unroll UNROLL
    for (int at = begin + warp; at < end; at += WARPS) add(at);
    for (int turn = 0; turn < WARPS; ++turn) {
      if (turn == warp) {
        for (int j = 0; j < PER_LANE; ++j) {
          const int i = lane + 32 * j;
          if (i < VECTORS) {
            float* sum = shared + i * nanochat::VECTOR;
            for (int e = 0; e < 8; ++e) sum[e] = total[j][e] += turn > 0 ? sum[e] : 0.f;
            if (turn == WARPS - 1) nanochat::store(sums + (size_t)token * W + i * nanochat::VECTOR, total[j]);
          }
        }
      }
      __syncthreads();
    }
  }
""",
)


class TokenIndex(NamedTuple):
    """Tokens to embed, (N,) int32 each: the tokens, their positions sorted by token, and the sorted tokens."""

    idx: mx.array
    order: mx.array
    ordered: mx.array


def index_tokens(idx: mx.array) -> TokenIndex:
    """Return the index of tokens of any shape."""
    flat = idx.reshape(-1).astype(mx.int32)
    order = mx.argsort(flat).astype(mx.int32)
    blocks, shapes = -(-flat.size // THREADS), [flat.shape]
    (ordered,) = _TAKE(flat, order, sizes=[flat.size], blocks=blocks, shapes=shapes, dtypes=[mx.int32])
    return TokenIndex(flat, order, ordered)


def index_without_gradient(idx: mx.array) -> TokenIndex:
    """Return the index of tokens of any shape for a forward pass only: nothing is sorted."""
    flat = idx.reshape(-1).astype(mx.int32)
    return TokenIndex(flat, flat, flat)


def embed_norm(table: mx.array, tokens: TokenIndex, *, eps: float, dtype: mx.Dtype) -> mx.array:
    """Return the normed rows of tokens, (N, W) in `dtype`, to which rows are rounded before they are normed.

    The gradient of the table (V, W) is dense and has that dtype, too.
    """
    return _embed_norm(eps, dtype)(table, *tokens)[0]


@functools.cache
def _embed_norm(eps: float, dtype: mx.Dtype) -> Callable[..., tuple[mx.array, ...]]:
    @mx.custom_function
    def run(table: mx.array, idx: mx.array, order: mx.array, ordered: mx.array) -> tuple[mx.array, ...]:
        rows, width = idx.shape[0], table.shape[1]
        normed, inverse = _EMBED(
            table,
            idx,
            blocks=-(-rows // (THREADS // 32)),
            shapes=[(rows, width), (rows,)],
            dtypes=[dtype, mx.float32],
            sizes=[rows],
            constants={"C": width, "EPS": eps},
        )
        return normed, inverse

    @run.vjp
    def _backward(
        primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
    ) -> tuple[mx.array, ...]:
        table, *tokens = primals
        gradient = norm_backward(cotangents[0], *outputs)
        return sum_rows(gradient, TokenIndex(*tokens), rows=table.shape[0]), *(mx.zeros_like(x) for x in tokens)

    return cast("Callable[..., tuple[mx.array, ...]]", run)


def sum_rows(gradients: mx.array, tokens: TokenIndex, *, rows: int, weights: mx.array | None = None) -> mx.array:
    """Return (rows, W): for each token the sum of the gradients (N, W) at its positions, 0 if it does not occur.

    With weights (N, H) float32, each of the H equal parts of a gradient row is multiplied by its own weight.
    """
    count, width = gradients.shape
    return _SUM_ROWS(
        gradients,
        tokens.order,
        tokens.ordered,
        tokens.ordered if weights is None else weights,
        blocks=-(-count // (THREADS // 32)),
        shapes=[(rows, width)],
        dtypes=[gradients.dtype],
        fill=0.0,
        sizes=[count],
        constants={"W": width, "HEADS": 1 if weights is None else weights.shape[1], "WEIGHTED": weights is not None},
    )[0]
