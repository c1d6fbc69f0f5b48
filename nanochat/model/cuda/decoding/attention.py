"""Attention of one query per row and head over the buffers of earlier positions, to which it adds the new one.

The kernel rotates and norms the new query and key, gates the new value, and writes key and value *into the buffers that
it reads*. MLX treats arrays as values, so this needs a reason why nobody can see an old buffer change; `forward` has
it.

A block reads a chunk of one row's positions. Queries and keys are normed, so scores are bounded and softmax needs no
maximum: results of chunks are sums, which the last block to finish adds up in the order of the chunks. Chunks beyond
a row's positions are not read.

Shapes: B rows, H query heads, G key/value heads, S positions in a buffer, D head size.
"""

from __future__ import annotations

import functools

import mlx.core as mx

from nanochat.model.config import GPTConfig
from nanochat.model.cuda.decoding.header import HEADER
from nanochat.model.cuda.launch import Kernel
from nanochat.model.cuda.qkv import GATE_PADDING, qkv_constants
from nanochat.model.rope_tables import angles

_CHUNK = 128
"""Positions per block."""
_THREADS = 256

_ATTEND = Kernel(
    "decode_attention",
    ("projected", "angles", "table", "tokens", "positions", "keys", "values"),
    ("attended", "sums"),
    ("rows", "size", "chunks"),
    """
  using T = decltype(nanochat::element_of(keys));
  constexpr int LANES = D / 8, GROUPS = THREADS / LANES, WARPS = THREADS / 32, HALF = D / 2;
  constexpr int AHEAD = 2;  // positions of a group whose loads are under way together
  constexpr int STRIDE = WIDTH + (H + 3) / 4 * 4;
  __shared__ __align__(16) float parts[WARPS][D];
  __shared__ __align__(16) T fresh[2][D];  // the new key and value
  __shared__ float weights[WARPS];
  __shared__ bool is_last;
  const int chunk = blockIdx.x / (rows * H), row = blockIdx.x / H % rows, head = blockIdx.x % H;
  const int shared = head / (H / G), pair = row * H + head;
  const int position = positions[row], slot = position % size, count = min(position + 1, size);
  const int begin = chunk * CHUNK, end = min(begin + CHUNK, count), active = (count + CHUNK - 1) / CHUNK;
  if (begin >= count) return;
  const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES, first = lane * 8;
  const float* from = projected + row * STRIDE;
  const size_t buffer = ((size_t)row * G + shared) * size * D + first;
  float query[8], sum[8] = {}, total = 0.f;
  const bool is_high = first >= HALF;
#pragma unroll 1
  for (int is_query = 0; is_query < 2; ++is_query) {  // rotate and norm this lane's part of the key, then of the query
    const float* x = from + (is_query ? head : H + shared) * D + first;
    const float* angle = angles + (size_t)position * D + first % HALF;
    float own[8], other[8], cosines[8], sines[8], squares = 0.f;
    nanochat::load(x, own);
    nanochat::load(is_high ? x - HALF : x + HALF, other);
    nanochat::load(angle, cosines);
    nanochat::load(angle + HALF, sines);
#pragma unroll
    for (int e = 0; e < 8; ++e) squares += own[e] * own[e];
    float factor = QK_SCALE * rsqrtf(nanochat::sum_over_lanes<LANES>(squares) / D + EPS);
    if (is_query) factor *= rsqrtf((float)D);
    const float signed_factor = is_high ? -factor : factor;
#pragma unroll
    for (int e = 0; e < 8; ++e) query[e] = factor * own[e] * cosines[e] + signed_factor * other[e] * sines[e];
    if (!is_query && group == 0) nanochat::store(fresh[0] + first, query);
  }
  if (group == 0) {
    float value[8], embedding[8];
    nanochat::load(from + (H + G + shared) * D + first, value);
    if (GATED) {
      const float gate = GATE_SCALE / (1.f + __expf(-from[(H + 2 * G) * D + shared]));
      nanochat::load(table + ((size_t)tokens[row] * G + shared) * D + first, embedding);
#pragma unroll
      for (int e = 0; e < 8; ++e) value[e] += gate * embedding[e];
    }
    nanochat::store(fresh[1] + first, value);
  }
  __syncthreads();
#pragma unroll 1
  for (int i = begin + group; i - group < end; i += GROUPS * AHEAD) {
    nanochat::Eight<T> key[AHEAD], value[AHEAD];
#pragma unroll
    for (int j = 0; j < AHEAD; ++j) {
      const int at = i + j * GROUPS;
      const size_t old = buffer + (size_t)at * D;
      key[j].load(at == slot ? fresh[0] + first : keys + old, at < end);
      value[j].load(at == slot ? fresh[1] + first : values + old, at < end);
    }
#pragma unroll
    for (int j = 0; j < AHEAD; ++j) {
      float x[8], score = 0.f;
      key[j].unpack(x);
#pragma unroll
      for (int e = 0; e < 8; ++e) score += query[e] * x[e];
      score = nanochat::sum_over_lanes<LANES>(score);
      const float weight = i + j * GROUPS < end ? __expf(score) : 0.f;
      total += weight;
      value[j].unpack(x);
#pragma unroll
      for (int e = 0; e < 8; ++e) sum[e] += weight * x[e];
    }
  }
  if (slot >= begin && slot < end && head % (H / G) == 0 && group == 0) {  // no thread reads this index
    nanochat::Eight<T> kept;
    kept.load(fresh[0] + first, true);
    kept.store(const_cast<T*>(keys) + buffer + (size_t)slot * D);
    kept.load(fresh[1] + first, true);
    kept.store(const_cast<T*>(values) + buffer + (size_t)slot * D);
  }
#pragma unroll
  for (int step = LANES; step < 32; step *= 2) {
    total += __shfl_xor_sync(0xffffffffu, total, step);
#pragma unroll
    for (int e = 0; e < 8; ++e) sum[e] += __shfl_xor_sync(0xffffffffu, sum[e], step);
  }
  if (threadIdx.x % 32 < LANES) {
    nanochat::store(parts[threadIdx.x / 32] + first, sum);
    weights[threadIdx.x / 32] = total;
  }
  __syncthreads();
  float x = 0.f, all = 0.f;
  const int d = threadIdx.x;
  if (d < D) {
#pragma unroll
    for (int i = 0; i < WARPS; ++i) { x += parts[i][d]; all += weights[i]; }
  }
  if (active > 1) {
    float* own = sums + (size_t)pair * chunks * 2 * D + d;
    if (d < D) { own[chunk * 2 * D] = x; own[chunk * 2 * D + D] = all; }
    __threadfence();
    __syncthreads();
    int* counters = reinterpret_cast<int*>(const_cast<float*>(projected) + row * STRIDE + WIDTH);
    if (d == 0) is_last = atomicAdd(counters + head, 1) == active - 1;
    __syncthreads();
    if (!is_last || d >= D) return;
    __threadfence();
    x = all = 0.f;
#pragma unroll 4
    for (int i = 0; i < active; ++i) { x += __ldcg(own + i * 2 * D); all += __ldcg(own + i * 2 * D + D); }
  }
  if (d < D) attended[(size_t)pair * D + d] = x / all;
""",
    HEADER,
)


def attend(
    config: GPTConfig,
    projected: mx.array,
    buffers: tuple[mx.array, mx.array],
    positions: mx.array,
    tokens: mx.array,
    table: mx.array | None,
) -> mx.array:
    """Return attention (B, H * D), after writing the new keys and values into the buffers.

    Args:
        config: head counts and architecture constants.
        projected: `linear.project` of the fused projection; its zeros are used up.
        buffers: keys and values, (B, G, S, D); position p is at index p % S.
        positions: (B,) int32, below the context length.
        tokens: (B,) int32; they choose the value embeddings.
        table: (V, G * D) value embeddings, if the layer has them.
    """
    keys, values = buffers
    rows, size = keys.shape[0], keys.shape[2]
    h, g, d = config.n_head, config.n_kv_head, config.head_dim
    chunks, gated = -(-size // _CHUNK), table is not None
    width = (h + 2 * g) * d + GATE_PADDING * gated
    return _ATTEND(
        projected,
        _angles(config.sequence_len, d, config.variant.rope_base),
        keys if table is None else table,
        tokens,
        positions,
        keys,
        values,
        sizes=[rows, size, chunks],
        blocks=rows * h * chunks,
        shapes=[(rows, h * d), (rows, h, chunks, 2 * d)],
        dtypes=[keys.dtype, mx.float32],
        constants=qkv_constants(config, width, gated) | {"CHUNK": _CHUNK, "THREADS": _THREADS},
        threads=_THREADS,
    )[0]


@functools.lru_cache(maxsize=8)
def _angles(positions: int, size: int, base: float) -> mx.array:
    """Return each position's cosines and sines, (at least `positions`, D)."""
    together = mx.concatenate(list(angles(positions, size, base)), axis=1)
    mx.eval(together)  # a step must not compute it again
    return together
