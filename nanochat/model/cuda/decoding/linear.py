"""Matrix products of one token per row, and what follows them. They read each weight once, which is what limits them.

A block computes 16 outputs, or twice as many, of all rows. Its warps share the inputs among them and add up at the end,
always in the same order, so a row's result does not depend on the other rows. In bfloat16 the rows, at most 32, are the
columns of one to four products of the tensor cores. The norm before a product becomes a factor of its results: the
kernel that writes the residual stream leaves sums of its squares.

The residual stream of a row is one array of float32: C exact values, the same rounded to the dtype of the weights,
which is what products read, and the sums of the squares of every 16: MLX needs time for every array of a kernel.

Shapes: B rows, N outputs, K inputs, C width, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import mlx.core as mx

from nanochat.model.config import SOFTCAP, GPTConfig
from nanochat.model.cuda.decoding.header import HEADER
from nanochat.model.cuda.launch import Constant, Kernel

MAX_ROWS = 32
TILE = 16
"""Outputs per product of the tensor cores: N is a multiple of it, and K of twice as much."""


class Mix(NamedTuple):
    """The input of a block in place of the residual stream x: residual[at] * x + sign * factors[at] * other."""

    residual: mx.array | None
    """Float32; None means 1."""
    factors: mx.array
    """Float32."""
    at: int
    other: mx.array
    """(B, C) float32."""
    sign: int = 1


_PRODUCT = """
  using T = decltype(nanochat::element_of(weight));
  constexpr int OUTPUTS = 16 * TALL, ROWS = 8 * WIDE, CHUNKS = K / 32, STEPS = (CHUNKS + WARPS - 1) / WARPS;
  constexpr int AHEAD = STEPS % 3 == 0 ? 3 : STEPS < 4 ? STEPS : 4;  // steps whose loads are under way together
  constexpr bool IS_EVEN = CHUNKS % (AHEAD * WARPS) == 0;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int begin = blockIdx.x * OUTPUTS;
  __shared__ float parts[WARPS][ROWS][OUTPUTS + 4];
  nanochat::Products<T, TALL, WIDE> sums;
  const T* from_weight = weight + (size_t)(begin + g) * K + warp * 32 + t * 8;
  const T* from_input = reinterpret_cast<const T*>(input + INPUT_AT) + g * INPUT_STRIDE + warp * 32 + t * 8;
#pragma unroll 1
  for (int step = 0; step < STEPS; step += AHEAD) {
    nanochat::Eight<T> w[AHEAD][2 * TALL], x[AHEAD][WIDE];
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) {
      const bool there = IS_EVEN || (step + i) * WARPS + warp < CHUNKS;
#pragma unroll
      for (int j = 0; j < 2 * TALL; ++j) w[i][j].load(from_weight + j * 8 * K + i * WARPS * 32, there);
#pragma unroll
      for (int j = 0; j < WIDE; ++j) {
        x[i][j].load(from_input + j * 8 * INPUT_STRIDE + i * WARPS * 32, there && j * 8 + g < rows);
      }
    }
    from_weight += AHEAD * WARPS * 32;
    from_input += AHEAD * WARPS * 32;
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) sums.add(w[i], x[i]);
  }
  sums.store(&parts[warp][0][0], OUTPUTS + 4, g, t);
"""
_STREAM = """
  constexpr int SQUARES = C + C * (int)sizeof(nanochat::element_of(weight)) / 4;
  constexpr int STREAM = SQUARES + (C / 16 + 3) / 4 * 4;
"""
_FROM_STREAM = (
    _STREAM + "  constexpr int INPUT_AT = C, INPUT_STRIDE = STREAM * 4 / (int)sizeof(nanochat::element_of(weight));\n"
)
_SCALES = """
  __shared__ float scales[ROWS];  // of the norm
#pragma unroll 1
  for (int row = warp; row < rows; row += WARPS) {
    float total = 0.f;
#pragma unroll 1
    for (int i = lane; i < C / 16; i += 32) total += input[row * STREAM + SQUARES + i];
    total = nanochat::sum_over_lanes<32>(total);
    if (lane == 0) scales[row] = rsqrtf(total / C + EPS);
  }
"""
_EACH_OUTPUT = """
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.x; i < ROWS * OUTPUTS; i += 32 * WARPS) {
    const int row = i / OUTPUTS, column = i % OUTPUTS, output = begin + column;
    float value = 0.f;
#pragma unroll
    for (int j = 0; j < WARPS; ++j) value += parts[j][row][column];
"""
_NORMED = _FROM_STREAM + _PRODUCT + _SCALES + _EACH_OUTPUT

_PROJECT = Kernel(
    "decode_project",
    ("weight", "input"),
    ("projected",),
    ("rows",),
    _NORMED
    + """
    if (row < rows) projected[row * STRIDE + output] = value * scales[row];
  }
  if (blockIdx.x == 0 && threadIdx.x < rows) {
    for (int i = N; i < STRIDE; ++i) projected[threadIdx.x * STRIDE + i] = 0.f;
  }
""",
    HEADER,
)
_EXPAND = Kernel(
    "decode_expand",
    ("weight", "input"),
    ("expanded",),
    ("rows",),
    _NORMED
    + """
    const float positive = fmaxf(value * scales[row], 0.f);
    if (row < rows) expanded[row * N + output] = positive * positive;
  }
""",
    HEADER,
)
_LOGITS = Kernel(
    "decode_logits",
    ("weight", "input"),
    ("logits",),
    ("rows",),
    _NORMED
    + """
    if (row < rows && output < N) logits[(size_t)row * N + output] = SOFTCAP * tanhf(value * scales[row] / SOFTCAP);
  }
""",
    HEADER,
)


@functools.cache
def _contract(mixes: bool, scales: bool, saves: bool) -> Kernel:
    mix = "    value = residual[factor] * value;\n" * scales
    mix += "    value += SIGN * factors[factor] * other[row * C + output];\n" * mixes
    return Kernel(
        "decode_contract",
        ("weight", "input", "stream", *(("residual",) * scales), *(("factors", "other") * mixes)),
        ("mixed", *(("added",) * saves)),
        ("rows", "factor"),
        _STREAM
        + "  constexpr int INPUT_AT = 0, INPUT_STRIDE = K;\n"
        + _PRODUCT
        + _EACH_OUTPUT
        + """
    if (row < rows) {
      value += stream[row * STREAM + output];
"""
        + "      added[row * C + output] = value;\n" * saves
        + mix
        + """
      mixed[row * STREAM + output] = value;
      reinterpret_cast<T*>(mixed + row * STREAM + C)[output] = value;
    }
    value = nanochat::sum_over_lanes<16>(value * value);
    if (row < rows && column == 0) mixed[row * STREAM + SQUARES + blockIdx.x] = value;
  }
""",
        HEADER,
    )


def stream_width(width: int, dtype: mx.Dtype) -> int:
    """Return the float32 values per row of a residual stream of `width` channels, for weights of `dtype`."""
    return width + width * dtype.size // 4 + -(-(width // TILE) // 4) * 4


def project(stream: mx.array, weight: mx.array, config: GPTConfig) -> mx.array:
    """Return norm(x) W^T, (B, N + padded H) float32; the last columns are 0, at least one for each query head."""
    columns = weight.shape[0] + -(-config.n_head // 4) * 4
    return _normed(_PROJECT, stream, weight, config, (stream.shape[0], columns), mx.float32, {"STRIDE": columns})


def expand(stream: mx.array, weight: mx.array, config: GPTConfig) -> mx.array:
    """Return relu(norm(x) W^T)^2, (B, N) in the dtype of the weight."""
    return _normed(_EXPAND, stream, weight, config, (stream.shape[0], weight.shape[0]), weight.dtype)


def logits(stream: mx.array, weight: mx.array, config: GPTConfig, vocab_size: int) -> mx.array:
    """Return SOFTCAP * tanh(norm(x) W^T / SOFTCAP) of the first `vocab_size` outputs, (B, V) float32."""
    shape, constants = (stream.shape[0], vocab_size), {"SOFTCAP": SOFTCAP, "N": vocab_size}
    return _normed(_LOGITS, stream, weight, config, shape, mx.float32, constants, tall=2)


def contract(
    inputs: mx.array, weight: mx.array, stream: mx.array, mix: Mix | None = None, *, saves: bool = False
) -> list[mx.array]:
    """Return the stream that the mix makes of x = stream + inputs W^T and, if `saves`, x itself, (B, C) float32."""
    (rows, k), width = inputs.shape, weight.shape[0]
    mixed = [] if mix is None else [x for x in (mix.residual, mix.factors, mix.other) if x is not None]
    return _launch(
        _contract(mix is not None, mix is not None and mix.residual is not None, saves),
        [weight, inputs, stream, *mixed],
        [rows, mix.at if mix else 0],
        [stream.shape, *([(rows, width)] * saves)],
        [mx.float32] * (1 + saves),
        {"C": width, "N": width, "K": k, "SIGN": mix.sign if mix else 1},
    )


def _normed(
    kernel: Kernel,
    stream: mx.array,
    weight: mx.array,
    config: GPTConfig,
    shape: tuple[int, int],
    dtype: mx.Dtype,
    constants: Mapping[str, Constant] | None = None,
    *,
    tall: int = 1,
) -> mx.array:
    sizes = {"N": weight.shape[0], "C": config.n_embd, "K": config.n_embd, "EPS": config.variant.norm_eps}
    return _launch(kernel, [weight, stream], [shape[0]], [shape], [dtype], sizes | dict(constants or {}), tall=tall)[0]


def _launch(
    kernel: Kernel,
    arrays: Sequence[mx.array],
    sizes: Sequence[int],
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[mx.Dtype],
    constants: Mapping[str, Constant],
    *,
    tall: int = 1,
) -> list[mx.array]:
    """Launch a kernel for N outputs of sizes[0] rows."""
    warps = 16 if constants["K"] > 2048 else 8  # enough loads under way where there are few blocks
    return kernel(
        *arrays,
        sizes=sizes,
        blocks=-(-int(constants["N"]) // (TILE * tall)),
        shapes=shapes,
        dtypes=dtypes,
        constants={**constants, "TALL": tall, "WIDE": -(-sizes[0] // 8), "WARPS": warps},
        threads=32 * warps,
    )
