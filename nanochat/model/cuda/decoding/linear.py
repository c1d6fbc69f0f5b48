"""Matrix products of one token per row, and what follows them. They read each weight once, which is what limits them.

A block computes 16 outputs, or twice as many, of all rows. Its warps share the inputs among them and add up at the end,
always in the same order, so a row's result does not depend on the other rows. In bfloat16 the rows, at most 32, are the
columns of one to four products of the tensor cores. The norm before a product becomes a factor of its results: the
kernel that writes the residual stream leaves sums of its squares.

Shapes: B rows, N outputs, K inputs, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import mlx.core as mx

from nanochat.model.config import SOFTCAP
from nanochat.model.cuda.decoding.header import HEADER
from nanochat.model.cuda.launch import Constant, Kernel

MAX_ROWS = 32
TILE = 32
"""K is a multiple of it; N is a multiple of half of it."""


class Stream(NamedTuple):
    """The residual stream of one token per row."""

    exact: mx.array
    """(B, C) float32."""
    rounded: mx.array
    """(B, C) in the dtype of the weights: what products read."""
    squares: mx.array
    """(B, parts) float32: sums of squares of `exact` over parts of C."""


class Mix(NamedTuple):
    """What a block reads instead of the residual stream x: residual[at] * x + sign * factors[at] * other."""

    residual: mx.array | None
    """Float32; None means 1."""
    factors: mx.array
    """Float32."""
    at: int
    other: mx.array
    """(B, C) float32."""
    sign: int = 1


_PRODUCT = """
  constexpr int OUTPUTS = 16 * TALL, ROWS = 8 * WIDE, CHUNKS = K / 32, STEPS = (CHUNKS + WARPS - 1) / WARPS;
  constexpr int AHEAD = STEPS < 4 ? STEPS : 4;  // steps whose loads are under way together
  using T = decltype(nanochat::element_of(weight));
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int begin = blockIdx.x * OUTPUTS;
  __shared__ float parts[WARPS][ROWS][OUTPUTS + 4];
  nanochat::Products<T, TALL, WIDE> sums;
#pragma unroll 1
  for (int step = 0; step < STEPS; step += AHEAD) {
    nanochat::Eight<T> w[AHEAD][2 * TALL], x[AHEAD][WIDE];
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) {
      const int chunk = (step + i) * WARPS + warp, at = chunk * 32 + t * 8;
#pragma unroll
      for (int j = 0; j < 2 * TALL; ++j) w[i][j].load(weight + (size_t)(begin + j * 8 + g) * K + at, chunk < CHUNKS);
#pragma unroll
      for (int j = 0; j < WIDE; ++j) {
        const int row = j * 8 + g;
        x[i][j].load(input + (size_t)row * K + at, chunk < CHUNKS && row < rows);
      }
    }
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) sums.add(w[i], x[i]);
  }
  sums.store(&parts[warp][0][0], OUTPUTS + 4, g, t);
"""
_SCALES = """
  __shared__ float scales[ROWS];  // of the norm
  for (int row = warp; row < rows; row += WARPS) {
    float total = 0.f;
    for (int i = lane; i < squares_per_row; i += 32) total += squares[row * squares_per_row + i];
    total = nanochat::sum_over_lanes<32>(total);
    if (lane == 0) scales[row] = rsqrtf(total / K + EPS);
  }
"""
_EACH_OUTPUT = """
  __syncthreads();
  for (int i = threadIdx.x; i < ROWS * OUTPUTS; i += 32 * WARPS) {
    const int row = i / OUTPUTS, column = i % OUTPUTS, output = begin + column;
    float value = 0.f;
#pragma unroll
    for (int j = 0; j < WARPS; ++j) value += parts[j][row][column];
"""

_PROJECT = Kernel(
    "decode_project",
    ("weight", "input", "squares"),
    ("projected", "counters"),
    ("rows", "squares_per_row"),
    _PRODUCT
    + _SCALES
    + _EACH_OUTPUT
    + """
    if (row < rows) projected[(size_t)row * N + output] = value * scales[row];
  }
  if (blockIdx.x == 0) for (int i = threadIdx.x; i < rows * HEADS; i += 32 * WARPS) counters[i] = 0;
""",
    HEADER,
)
_EXPAND = Kernel(
    "decode_expand",
    ("weight", "input", "squares"),
    ("expanded",),
    ("rows", "squares_per_row"),
    _PRODUCT
    + _SCALES
    + _EACH_OUTPUT
    + """
    if (row < rows) {
      const float positive = fmaxf(value * scales[row], 0.f);
      expanded[(size_t)row * N + output] = positive * positive;
    }
  }
""",
    HEADER,
)
_CONTRACT = Kernel(
    "decode_contract",
    ("weight", "input", "stream", "residual", "factors", "other"),
    ("added", "exact", "rounded", "squares"),
    ("rows", "factor"),
    _PRODUCT
    + _EACH_OUTPUT
    + """
    const size_t at = (size_t)row * N + output;
    if (row < rows) {
      value += stream[at];
      if (SAVES) added[at] = value;
      if (MIXES) value = (SCALES ? residual[factor] : 1.f) * value + SIGN * factors[factor] * other[at];
      exact[at] = value;
      rounded[at] = value;
    }
    value = nanochat::sum_over_lanes<16>(value * value);
    if (row < rows && column == 0) squares[(size_t)row * (N / 16) + blockIdx.x] = value;
  }
""",
    HEADER,
)
_LOGITS = Kernel(
    "decode_logits",
    ("weight", "input", "squares"),
    ("logits",),
    ("rows", "squares_per_row"),
    _PRODUCT
    + _SCALES
    + _EACH_OUTPUT
    + """
    if (row < rows && output < N) logits[(size_t)row * N + output] = SOFTCAP * tanhf(value * scales[row] / SOFTCAP);
  }
""",
    HEADER,
)


def project(stream: Stream, weight: mx.array, eps: float, *, heads: int) -> tuple[mx.array, mx.array]:
    """Return norm(x) W^T, (B, N) float32, and a zero for each row and query head, (B * heads,) int32."""
    rows = stream.rounded.shape[0]
    shapes, constants = [(rows, weight.shape[0]), (rows * heads,)], {"EPS": eps, "HEADS": heads}
    projected, counters = _normed(_PROJECT, stream, weight, shapes, [mx.float32, mx.int32], constants)
    return projected, counters


def expand(stream: Stream, weight: mx.array, eps: float) -> mx.array:
    """Return relu(norm(x) W^T)^2, (B, N) in the dtype of the weight."""
    shape = (stream.rounded.shape[0], weight.shape[0])
    return _normed(_EXPAND, stream, weight, [shape], [weight.dtype], {"EPS": eps})[0]


def logits(stream: Stream, weight: mx.array, eps: float, *, vocab_size: int) -> mx.array:
    """Return SOFTCAP * tanh(norm(x) W^T / SOFTCAP) of the first `vocab_size` outputs, (B, V) float32."""
    constants = {"EPS": eps, "SOFTCAP": SOFTCAP}
    return _normed(_LOGITS, stream, weight, [(stream.rounded.shape[0], vocab_size)], [mx.float32], constants, tall=2)[0]


def contract(
    inputs: mx.array, weight: mx.array, stream: mx.array, *, mix: Mix | None = None, saves: bool = False
) -> tuple[mx.array, Stream]:
    """Return x = stream + inputs W^T, (B, C) float32 (only if `saves`), and the stream that the mix makes of it."""
    rows, shape = inputs.shape[0], stream.shape
    added, *parts = _launch(
        _CONTRACT,
        shape[1],
        (weight, inputs, stream, *_mix_arrays(mix, stream)),
        sizes=[rows, mix.at if mix else 0],
        shapes=[shape if saves else (1,), shape, shape, (rows, shape[1] // 16)],
        dtypes=[mx.float32, mx.float32, weight.dtype, mx.float32],
        constants={
            "SAVES": saves,
            "MIXES": mix is not None,
            "SCALES": mix is not None and mix.residual is not None,
            "SIGN": mix.sign if mix else 1,
        },
    )
    return added, Stream(*parts)


def _mix_arrays(mix: Mix | None, unused: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    if mix is None:
        return unused, unused, unused
    return unused if mix.residual is None else mix.residual, mix.factors, mix.other


def _normed(
    kernel: Kernel,
    stream: Stream,
    weight: mx.array,
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[mx.Dtype],
    constants: Mapping[str, Constant],
    *,
    tall: int = 1,
) -> list[mx.array]:
    arrays, sizes = (weight, stream.rounded, stream.squares), list(stream.squares.shape)
    return _launch(
        kernel, shapes[0][1], arrays, sizes=sizes, shapes=shapes, dtypes=dtypes, constants=constants, tall=tall
    )


def _launch(
    kernel: Kernel,
    outputs: int,
    arrays: Sequence[mx.array],
    *,
    sizes: Sequence[int],
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[mx.Dtype],
    constants: Mapping[str, Constant],
    tall: int = 1,
) -> list[mx.array]:
    """Launch a kernel for N outputs on a weight (at least N, K) and inputs (B, K), which are the first two arrays."""
    rows, inputs = arrays[1].shape
    warps = 16 if inputs > 2048 else 8  # enough loads under way where there are few blocks
    return kernel(
        *arrays,
        sizes=sizes,
        blocks=-(-outputs // (16 * tall)),
        shapes=shapes,
        dtypes=dtypes,
        constants={**constants, "N": outputs, "K": inputs, "TALL": tall, "WIDE": -(-rows // 8), "WARPS": warps},
        threads=32 * warps,
    )
