"""Token embeddings on CUDA, with a gradient that takes one pass over the tokens.

Tokens are sorted once per step, and a kernel adds up the gradients of each token in that order. The sums are float32
and their order is fixed, so that the same step gives the same bits. Shapes: N tokens, V rows of the table, W its width.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import mlx.core as mx

from nanochat.model.cuda.launch import Kernel

_CHANNELS = 4
"""Channels per thread: few, so that many occurrences of a token load at once."""

_SUM_ROWS = Kernel(
    "sum_rows",
    ("gradients", "order", "ordered", "weights"),
    ("sums",),
    ("count",),
    """
  using Element = decltype(nanochat::element_of(gradients));
  constexpr int UNROLL = 16;
  const int begin = blockIdx.x, token = ordered[begin];
  if (begin > 0 && ordered[begin - 1] == token) return;  // the block at the beginning of a token's run sums the run
  const int channel = threadIdx.x * CHANNELS;
  if (channel >= W) return;
  float total[CHANNELS] = {0.f, 0.f, 0.f, 0.f};
  bool in_run = true;
  for (int base = begin; in_run; base += UNROLL) {
    nanochat::Four<Element> part[UNROLL];
    float weight[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      const int at = base + u;
      in_run = in_run && at < count && __ldg(ordered + (at < count ? at : begin)) == token;
      weight[u] = 0.f;
      if (in_run) {
        const size_t position = __ldg(order + at);
        weight[u] = WEIGHTED ? nanochat::to_float(__ldg(weights + position * HEADS + channel / (W / HEADS))) : 1.f;
        part[u].load(gradients + position * W + channel);
      }
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      if (weight[u] != 0.f) part[u].add_to(total, weight[u]);
    }
  }
  nanochat::Four<Element>::store(sums + (size_t)token * W + channel, total);
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
    order = mx.argsort(flat)
    return TokenIndex(flat, order.astype(mx.int32), flat[order])


def index_without_gradient(idx: mx.array) -> TokenIndex:
    """Return the index of tokens of any shape for a forward pass only: nothing is sorted."""
    flat = idx.reshape(-1).astype(mx.int32)
    return TokenIndex(flat, flat, flat)


def embed(table: mx.array, tokens: TokenIndex) -> mx.array:
    """Return the tokens' rows, (N, W) in the table's dtype; the gradient of the table (V, W) is dense, in its dtype."""
    return cast("mx.array", _embed(table, *tokens))


@mx.custom_function
def _embed(table: mx.array, idx: mx.array, order: mx.array, ordered: mx.array) -> mx.array:
    return table[idx]


@_embed.vjp
def _backward(primals: tuple[mx.array, ...], cotangent: mx.array, _: mx.array) -> tuple[mx.array, ...]:
    table, *tokens = primals
    return sum_rows(cotangent, TokenIndex(*tokens), rows=table.shape[0]), *(mx.zeros_like(x) for x in tokens)


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
        blocks=count,
        threads=-(-width // _CHANNELS // 32) * 32,
        shapes=[(rows, width)],
        dtypes=[gradients.dtype],
        fill=0.0,
        sizes=[count],
        constants={
            "W": width,
            "CHANNELS": _CHANNELS,
            "HEADS": 1 if weights is None else weights.shape[1],
            "WEIGHTED": weights is not None,
        },
    )[0]
