"""CUDA kernels for the parts of a decoding step around the model: preparing its inputs, and drawing tokens.

Their plain forms are in `decoding_step` and `sampling.sample`. MLX would compile a kernel for each group of those
operations, which takes a minute before the first answer on a machine.

Shape letters: B rows of the batch, V vocabulary.
"""

from __future__ import annotations

import mlx.core as mx

from nanochat.inference.sampling import SamplingArrays
from nanochat.model.cuda.launch import THREADS, Kernel

_DRAW_THREADS = 512
"""Threads of `_DRAW` per row: few enough for its registers."""

_ADVANCE = Kernel(
    "advance_rows",
    ("forced", "tokens", "positions", "counts"),
    ("inputs", "following", "counted"),
    ("rows", "last"),
    """
  const int row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  inputs[row] = forced[row] >= 0 ? forced[row] : tokens[row];
  following[row] = min(positions[row] + 1, last);
  counted[row] = counts[row] + 1;
""",
)

_DRAW = Kernel(
    "draw_tokens",
    ("logits", "order", "keys", "counts", "temperatures", "top_ks", "top_ps"),
    ("drawn",),
    ("vocab",),
    """
  constexpr int WARPS = THREADS / 32;
  __shared__ float values[WARPS];
  __shared__ int tokens[WARPS];
  const int row = blockIdx.x, thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const float* own = logits + (size_t)row * vocab;
  const auto* ranked = order + (size_t)row * vocab;
  const float temperature = temperatures[row];
  const bool is_greedy = temperature == 0.f;
  auto scaled = [&](int token) { return is_greedy ? own[token] : own[token] / temperature; };
  auto sum = [&](float x) {  // of all threads, for each of them, in a fixed order
    x = nanochat::sum_over_lanes<32>(x);
    __syncthreads();
    if (lane == 0) values[warp] = x;
    __syncthreads();
    x = 0.f;
    for (int i = 0; i < WARPS; ++i) x += values[i];
    return x;
  };
  int count = vocab;
  const bool is_filtered = FILTERS && !is_greedy;
  if (is_filtered) {  // the number of the most likely tokens that top-k and then top-p keep
    count = min(vocab, top_ks[row]);
    const float top_p = top_ps[row];
    if (top_p < 1.f) {
      const float most = scaled((int)ranked[0]);
      float all = 0.f;
      for (int i = thread; i < count; i += THREADS) all += expf(scaled((int)ranked[i]) - most);
      const float limit = top_p * sum(all);
      float before = 0.f;  // of the tokens in front of this round's
      int kept = 0;
      for (int begin = 0; begin < count; begin += THREADS) {
        const int i = begin + thread;
        const float weight = i < count ? expf(scaled((int)ranked[i]) - most) : 0.f;
        float upto = weight;
        for (int step = 1; step < 32; step *= 2) {
          const float other = __shfl_up_sync(0xffffffffu, upto, step);
          if (lane >= step) upto += other;
        }
        __syncthreads();
        if (lane == 31) values[warp] = upto;
        __syncthreads();
        float earlier = before;
        for (int w = 0; w < warp; ++w) earlier += values[w];
        for (int w = 0; w < WARPS; ++w) before += values[w];
        const int here = __syncthreads_count(i < count && earlier + upto - weight < limit);
        kept += here;
        if (here < THREADS) break;
      }
      count = max(1, kept);
    }
  }
  const unsigned first_key = keys[2 * row], second_key = keys[2 * row + 1] + (unsigned)counts[row];
  const int half = vocab / 2, pairs = half + vocab % 2;
  auto noise = [&](int token) {  // mx.random.gumbel((vocab,), key=key)[token], by Threefry-2x32
    const int pair = token < pairs ? token : token - pairs;
    const unsigned key[3] = {first_key, second_key, first_key ^ second_key ^ 0x1BD11BDAu};
    const int turns[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
    unsigned x = pair + key[0], y = (vocab % 2 && pair == half ? 0 : pair + pairs) + key[1];
#pragma unroll
    for (int i = 0; i < 5; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        x += y;
        y = (y << turns[i % 2][j]) | (y >> (32 - turns[i % 2][j]));
        y ^= x;
      }
      x += key[(i + 1) % 3];
      y += key[(i + 2) % 3] + i + 1;
    }
    const float uniform = fminf((float)(token < pairs ? x : y) / 4294967296.f, BELOW_1);
    return -logf(-logf(uniform));
  };
  float best = __int_as_float(0xff800000);  // -infinity
  int chosen = vocab;
  auto compare = [&](float value, int token) {  // the first of the largest
    if (value > best || (value == best && token < chosen)) { best = value; chosen = token; }
  };
  for (int i = thread; i < count; i += THREADS) {
    const int token = is_filtered ? (int)ranked[i] : i;
    compare(is_greedy ? own[token] : scaled(token) + noise(token), token);
  }
  for (int step = 16; step > 0; step /= 2) {
    const float value = __shfl_xor_sync(0xffffffffu, best, step);
    compare(value, __shfl_xor_sync(0xffffffffu, chosen, step));
  }
  __syncthreads();
  if (lane == 0) { values[warp] = best; tokens[warp] = chosen; }
  __syncthreads();
  if (thread == 0) {
    for (int i = 1; i < WARPS; ++i) compare(values[i], tokens[i]);
    drawn[row] = min(chosen, vocab - 1);
  }
""",
)


def advance(
    forced: mx.array, tokens: mx.array, positions: mx.array, counts: mx.array, *, last: int
) -> tuple[mx.array, mx.array, mx.array]:
    """Return a step's inputs, the positions after it (at most `last`), and the counts after it; all (B,) int32."""
    rows = tokens.size
    arrays, sizes, blocks = (forced, tokens, positions, counts), [rows, last], -(-rows // THREADS)
    inputs, following, counted = _ADVANCE(
        *arrays, sizes=sizes, blocks=blocks, shapes=[(rows,)] * 3, dtypes=[mx.int32] * 3
    )
    return inputs, following, counted


def draw(logits: mx.array, keys: mx.array, counts: mx.array, settings: SamplingArrays, *, filters: bool) -> mx.array:
    """Return the tokens that `sampling.sample` draws with the keys `step_keys(keys, counts)`, (B,) int32.

    Rows of temperature 0 get their likeliest token. `filters` says whether any row has top-k or top-p.
    """
    rows, vocab = logits.shape
    order = mx.argsort(-logits, axis=-1) if filters else counts  # without filters the kernel does not read it
    (drawn,) = _DRAW(
        *(logits, order, keys, counts, *settings),
        sizes=[vocab],
        blocks=rows,
        shapes=[(rows,)],
        dtypes=[mx.int32],
        constants={"FILTERS": filters, "THREADS": _DRAW_THREADS, "BELOW_1": 1 - 2**-24},
        threads=_DRAW_THREADS,
    )
    return drawn
