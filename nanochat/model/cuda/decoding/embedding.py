"""Token embeddings of one token per row, with the smear, mixed as the first block reads them.

Shapes: B rows, C width, V vocabulary.
"""

from __future__ import annotations

import mlx.core as mx

from nanochat.model.architectures import Variant
from nanochat.model.config import SMEAR_CHANNELS
from nanochat.model.cuda.decoding.linear import stream_width
from nanochat.model.cuda.launch import THREADS, Kernel

_EMBED = Kernel(
    "decode_embed",
    ("table", "tokens", "newest", "smear_gate", "smear_factor", "residual_factors", "first_factors"),
    ("first", "stream"),
    (),
    """
  using T = decltype(nanochat::element_of(table));
  constexpr int PER = (C + THREADS - 1) / THREADS;
  __shared__ float parts[THREADS / 32];
  auto sum = [&](float x) {
    x = nanochat::sum_over_lanes<32>(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0.f;
    for (int i = 0; i < THREADS / 32; ++i) x += parts[i];
    return x;
  };
  auto embed = [&](int token, float* to) {
    float total = 0.f;
#pragma unroll
    for (int j = 0; j < PER; ++j) {
      const int i = threadIdx.x + j * THREADS;
      to[j] = i < C ? nanochat::to_float(table[(size_t)token * C + i]) : 0.f;
      total += to[j] * to[j];
    }
    const float scale = rsqrtf(sum(total) / C + EPS);
#pragma unroll
    for (int j = 0; j < PER; ++j) to[j] *= scale;
  };
  const int row = blockIdx.x;
  float x[PER];
  embed(tokens[row], x);
  if (SMEARS && newest[row] >= 0) {
    float before[PER];
    embed(newest[row], before);
    const float logit = sum(threadIdx.x < GATES ? x[0] * nanochat::to_float(smear_gate[threadIdx.x]) : 0.f);
    const float gate = nanochat::to_float(smear_factor[0]) / (1.f + __expf(-logit));
#pragma unroll
    for (int j = 0; j < PER; ++j) x[j] += gate * before[j];
  }
  const float factor = MIXES ? nanochat::to_float(residual_factors[0]) + nanochat::to_float(first_factors[0]) : 1.f;
  float total = 0.f;
#pragma unroll
  for (int j = 0; j < PER; ++j) {
    const int i = threadIdx.x + j * THREADS;
    if (i >= C) break;
    const float y = factor * x[j];
    first[(size_t)row * C + i] = x[j];
    stream[row * STREAM + i] = y;
    reinterpret_cast<T*>(stream + row * STREAM + C)[i] = y;
    total += y * y;
  }
  total = sum(total);
  for (int i = threadIdx.x; i < C / 16; i += THREADS) {
    stream[(row + 1) * STREAM - (C / 16 + 3) / 4 * 4 + i] = i == 0 ? total : 0.f;
  }
""",
)


def embed(
    variant: Variant,
    table: mx.array,
    tokens: mx.array,
    newest: mx.array,
    smear: tuple[mx.array, mx.array] | None,
    factors: tuple[mx.array, mx.array] | None,
) -> list[mx.array]:
    """Return x0 (B, C) float32, and the residual stream that the first block reads, as `linear` has it.

    Args:
        variant: the architecture's constants.
        table: (V, C).
        tokens: (B,) int32.
        newest: (B,) int32, the token before, -1 if there is none.
        smear: its gate and factor, if the architecture has one.
        factors: `resid_lambdas` and `x0_lambdas`, if the architecture has them.
    """
    rows, width = tokens.size, table.shape[1]
    stream = stream_width(width, table.dtype)
    return _EMBED(
        table,
        tokens,
        newest,
        *(smear or (table, table)),
        *(factors or (table, table)),
        sizes=[],
        blocks=rows,
        shapes=[(rows, width), (rows, stream)],
        dtypes=[mx.float32, mx.float32],
        constants={
            "C": width,
            "STREAM": stream,
            "EPS": variant.norm_eps,
            "SMEARS": smear is not None,
            "GATES": SMEAR_CHANNELS,
            "MIXES": factors is not None,
            "THREADS": THREADS,
        },
    )
