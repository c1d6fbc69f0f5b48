"""Embedding lookup whose gradient costs one pass: tokens are sorted once a step, each row is summed in order.

The sums are float32 and their order is fixed, so that the same step gives the same bits. Shapes: N tokens, V rows of
the table, W its width.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import mlx.core as mx

from nanochat.model.cuda.launch import Kernel

_CHANNELS = 4
"""Channels of a thread: few, so that many occurrences of a token are on their way at once."""

_SUM_ROWS = Kernel(
    "sum_rows",
    ("gradients", "order", "ordered", "weights"),
    ("sums",),
    ("count",),
    """
  using Element = decltype(nanochat::element_of(gradients));
  constexpr int UNROLL = 16;
  const int begin = blockIdx.x, token = ordered[begin];
  if (begin > 0 && ordered[begin - 1] == token) return;  // one block an own token: where its run begins
  const int channel = threadIdx.x * CHANNELS;
  if (channel >= W) return;
  float total[CHANNELS] = {0.f, 0.f, 0.f, 0.f};
  bool goes_on = true;
  for (int base = begin; goes_on; base += UNROLL) {
    nanochat::Four<Element> part[UNROLL];
    float weight[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      const int at = base + u;
      goes_on = goes_on && at < count && __ldg(ordered + (at < count ? at : begin)) == token;
      weight[u] = 0.f;
      if (goes_on) {
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


class Lookup(NamedTuple):
    """Tokens to look up, (N,) int32 each: in their order, the positions sorted by token, the tokens sorted."""

    idx: mx.array
    order: mx.array
    ordered: mx.array


def lookup_of(idx: mx.array) -> Lookup:
    """Return the lookup of tokens of any shape."""
    flat = idx.reshape(-1).astype(mx.int32)
    order = mx.argsort(flat)
    return Lookup(flat, order.astype(mx.int32), flat[order])


def lookup_without_gradient(idx: mx.array) -> Lookup:
    """Return the lookup of tokens of any shape for reading alone: nothing is sorted."""
    flat = idx.reshape(-1).astype(mx.int32)
    return Lookup(flat, flat, flat)


def rows_of(table: mx.array, lookup: Lookup) -> mx.array:
    """Return the tokens' rows, (N, W) in the table's dtype; the gradient of the table (V, W) is dense, in its dtype."""
    return cast("mx.array", _rows_of(table, *lookup))


@mx.custom_function
def _rows_of(table: mx.array, idx: mx.array, order: mx.array, ordered: mx.array) -> mx.array:
    return table[idx]


@_rows_of.vjp
def _backward(primals: tuple[mx.array, ...], cotangent: mx.array, _: mx.array) -> tuple[mx.array, ...]:
    table, *tokens = primals
    return sum_rows(cotangent, Lookup(*tokens), rows=table.shape[0]), *(mx.zeros_like(x) for x in tokens)


def sum_rows(gradients: mx.array, lookup: Lookup, *, rows: int, weights: mx.array | None = None) -> mx.array:
    """Return (rows, W): at each token the sum of its positions' gradients (N, W), 0 where a token does not occur.

    With weights (N, H) float32, each of a row's H equal parts is multiplied by its own.
    """
    count, width = gradients.shape
    return _SUM_ROWS(
        gradients,
        lookup.order,
        lookup.ordered,
        lookup.ordered if weights is None else weights,
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
