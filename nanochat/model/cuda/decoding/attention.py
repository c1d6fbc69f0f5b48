"""Attention of one query per row and head over the buffers of earlier positions, to which it adds the new one.

The kernel rotates and norms the new query and key, gates the new value, and writes key and value *into the buffers that
it reads*. MLX treats arrays as values, so this needs a reason why nobody can see an old buffer change; `step` has it.

A block reads a chunk of one row's positions. Queries and keys are normed, so scores are bounded and softmax needs no
maximum: results of chunks are sums, which the last block to finish adds up in the order of the chunks. Chunks beyond
a row's positions are not read.

Shapes: B rows, H query heads, G key/value heads, S positions in a buffer, D head size.
"""

from __future__ import annotations

import mlx.core as mx

from nanochat.model.config import GPTConfig
from nanochat.model.cuda.decoding.header import HEADER
from nanochat.model.cuda.launch import Kernel
from nanochat.model.cuda.qkv import qkv_constants
from nanochat.model.rope_tables import angles

_CHUNK = 128
"""Positions per block."""
_THREADS = 128

_ATTEND = Kernel(
    "decode_attention",
    ("projected", "cosines", "sines", "table", "tokens", "positions", "keys", "values", "counters"),
    ("attended", "sums", "totals"),
    ("rows", "size", "chunks"),
    """
  using T = decltype(nanochat::element_of(keys));
  constexpr int LANES = D / 8, GROUPS = THREADS / LANES, WARPS = THREADS / 32, HALF = D / 2;
  constexpr int AHEAD = 4;  // positions of a group whose loads are under way together
  const int chunk = blockIdx.x / (rows * H), row = blockIdx.x / H % rows, head = blockIdx.x % H;
  const int shared = head / (H / G);
  const int position = positions[row], slot = position % size, count = min(position + 1, size);
  const int begin = chunk * CHUNK, active = (count + CHUNK - 1) / CHUNK;
  if (chunk >= active) return;
  const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
  const float* from = projected + (size_t)row * WIDTH;
  float c[8], s[8];
  nanochat::load(cosines + (size_t)position * HALF + lane * 8 % HALF, c);
  nanochat::load(sines + (size_t)position * HALF + lane * 8 % HALF, s);
  auto rotate = [&](const float* x, float factor, float* to) {  // this lane's part of a head, normed
    const bool is_high = lane * 8 >= HALF;
    float own[8], other[8], total = 0.f;
    nanochat::load(x + lane * 8, own);
    nanochat::load(x + (is_high ? lane * 8 - HALF : lane * 8 + HALF), other);
#pragma unroll
    for (int e = 0; e < 8; ++e) total += own[e] * own[e];
    factor *= rsqrtf(nanochat::sum_over_lanes<LANES>(total) / D + EPS);
#pragma unroll
    for (int e = 0; e < 8; ++e) to[e] = factor * (own[e] * c[e] + (is_high ? -other[e] : other[e]) * s[e]);
  };
  float query[8], sum[8] = {}, total = 0.f;
  rotate(from + head * D, QK_SCALE * rsqrtf((float)D), query);
  auto add = [&](const float* key, const float* value, bool counts) {
    float score = 0.f;
#pragma unroll
    for (int e = 0; e < 8; ++e) score += query[e] * key[e];
    score = nanochat::sum_over_lanes<LANES>(score);
    const float weight = counts ? __expf(score) : 0.f;
    total += weight;
#pragma unroll
    for (int e = 0; e < 8; ++e) sum[e] += weight * value[e];
  };
  const size_t buffer = ((size_t)row * G + shared) * size * D + lane * 8;
#pragma unroll 1
  for (int i = group; i < CHUNK; i += GROUPS * AHEAD) {
    if (begin + i - group >= count) break;
    nanochat::Eight<T> key[AHEAD], value[AHEAD];
#pragma unroll
    for (int j = 0; j < AHEAD; ++j) {
      const int at = begin + i + j * GROUPS;
      const bool counts = i + j * GROUPS < CHUNK && at < count && at != slot;
      key[j].load(keys + buffer + (size_t)at * D, counts);
      value[j].load(values + buffer + (size_t)at * D, counts);
    }
#pragma unroll
    for (int j = 0; j < AHEAD; ++j) {
      const int at = begin + i + j * GROUPS;
      float k[8], v[8];
      key[j].unpack(k);
      value[j].unpack(v);
      add(k, v, i + j * GROUPS < CHUNK && at < count && at != slot);
    }
  }
  if (slot >= begin && slot < begin + CHUNK) {
    float key[8], value[8];
    rotate(from + (H + shared) * D, QK_SCALE, key);
    nanochat::load(from + (H + G + shared) * D + lane * 8, value);
    if (GATED) {
      const float gate = GATE_SCALE / (1.f + __expf(-from[(H + 2 * G) * D + shared]));
      float own[8];
      nanochat::load(table + ((size_t)tokens[row] * G + shared) * D + lane * 8, own);
#pragma unroll
      for (int e = 0; e < 8; ++e) value[e] += gate * own[e];
    }
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      key[e] = nanochat::rounded(keys, key[e]);
      value[e] = nanochat::rounded(values, value[e]);
    }
    add(key, value, group == 0);
    if (group == 0 && head % (H / G) == 0) {
      nanochat::store(const_cast<T*>(keys) + buffer + (size_t)slot * D, key);
      nanochat::store(const_cast<T*>(values) + buffer + (size_t)slot * D, value);
    }
  }
  __shared__ __align__(16) float parts[WARPS][D];
  __shared__ float weights[WARPS];
  __shared__ bool is_last;
#pragma unroll
  for (int step = LANES; step < 32; step *= 2) {
    total += __shfl_xor_sync(0xffffffffu, total, step);
#pragma unroll
    for (int e = 0; e < 8; ++e) sum[e] += __shfl_xor_sync(0xffffffffu, sum[e], step);
  }
  if (threadIdx.x % 32 < LANES) {
    nanochat::store(&parts[threadIdx.x / 32][lane * 8], sum);
    if (lane == 0) weights[threadIdx.x / 32] = total;
  }
  __syncthreads();
  const int pair = row * H + head;
  auto* to = attended + (size_t)pair * D;
  float all = 0.f;
#pragma unroll
  for (int i = 0; i < WARPS; ++i) all += weights[i];
  for (int i = threadIdx.x; i < D; i += THREADS) {
    float x = 0.f;
#pragma unroll
    for (int j = 0; j < WARPS; ++j) x += parts[j][i];
    if (active == 1) to[i] = x / all;
    else sums[((size_t)pair * chunks + chunk) * D + i] = x;
  }
  if (active == 1) return;
  if (threadIdx.x == 0) totals[pair * chunks + chunk] = all;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) is_last = atomicAdd(const_cast<int*>(counters) + pair, 1) == active - 1;
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  all = 0.f;
  for (int i = 0; i < active; ++i) all += __ldcg(totals + pair * chunks + i);
  for (int i = threadIdx.x; i < D; i += THREADS) {
    float x = 0.f;
#pragma unroll 4
    for (int j = 0; j < active; ++j) x += __ldcg(sums + ((size_t)pair * chunks + j) * D + i);
    to[i] = x / all;
  }
""",
    HEADER,
)


def attend(
    config: GPTConfig,
    projected: mx.array,
    counters: mx.array,
    buffers: tuple[mx.array, mx.array],
    positions: mx.array,
    tokens: mx.array,
    table: mx.array | None,
) -> mx.array:
    """Return attention (B, H * D), after writing the new keys and values into the buffers.

    Args:
        config: head counts and architecture constants.
        projected: queries, keys, values and gates, (B, N) float32.
        counters: a zero for each row and head, (B * H,) int32; they are used up.
        buffers: keys and values, (B, G, S, D); position p is at index p % S.
        positions: (B,) int32, below the context length.
        tokens: (B,) int32; they choose the value embeddings.
        table: (V, G * D) value embeddings, if the layer has them.
    """
    keys, values = buffers
    rows, size = keys.shape[0], keys.shape[2]
    h, d = config.n_head, config.head_dim
    chunks = -(-size // _CHUNK)
    return _ATTEND(
        projected,
        *angles(config.sequence_len, d, config.variant.rope_base),
        keys if table is None else table,
        tokens,
        positions,
        keys,
        values,
        counters,
        sizes=[rows, size, chunks],
        blocks=rows * h * chunks,
        shapes=[(rows, h * d), (rows, h, chunks, d), (rows, h, chunks)],
        dtypes=[keys.dtype, mx.float32, mx.float32],
        constants=qkv_constants(config, projected.shape[1], table is not None) | {"CHUNK": _CHUNK, "THREADS": _THREADS},
        threads=_THREADS,
    )[0]
