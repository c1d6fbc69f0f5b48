"""Cross-entropy of softcapped logits on CUDA: one kernel computes a chunk's losses and the gradient of its logits.

With s the softcap, e = exp(2 x / s) and c = 1 / (1 + e), the capped logit is s - 2 s c and its slope is 4 c (1 - c).
The cap bounds the logits, so no pass looks for their maximum. Each element needs three special functions per pass; the
constants TO_E and TO_P turn exponentials into powers of 2.
"""

from __future__ import annotations

import math

import mlx.core as mx

from nanochat.model.config import SOFTCAP
from nanochat.model.cuda.launch import Kernel
from nanochat.model.cuda.scale_rows import scale_rows
from nanochat.model.low_memory.loss import LossKernels

_THREADS = 512
_CHUNK_ELEMENTS = 2**27
"""Logits per chunk: 4,096 rows of 32,768, a quarter of a gigabyte in bfloat16. Some chunks exist at a time."""

_LOSSES = Kernel(
    "softcap_loss",
    ("logits", "targets"),
    ("losses", "d_logits"),
    (),
    """
  const int row = blockIdx.x, target = targets[row];
  const auto* from = logits + (size_t)row * V;
  float total = 0.f;
#pragma unroll 2
  for (int i = threadIdx.x * nanochat::VECTOR; i < USED; i += blockDim.x * nanochat::VECTOR) {
    float x[8];
    nanochat::load(from + i, x);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      float e, p, c;
      asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x[j] * TO_E));
      asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(c) : "f"(1.f + e));
      asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(p) : "f"(c * TO_P));
      total += i + j < USED ? p : 0.f;
    }
  }
  total = nanochat::sum_over_block(total);
  if (threadIdx.x == 0) {
    float loss = 0.f;
    if (target >= 0) {
      const float c = 1.f / (1.f + exp2f(nanochat::to_float(from[target]) * TO_E));
      loss = logf(total) - 0.693147180559945f * c * TO_P;
    }
    losses[row] = loss;
  }
  if (!HAS_GRADIENT) return;
  const float inverse = target >= 0 ? 1.f / total : 0.f;
  auto* to = d_logits + (size_t)row * V;
#pragma unroll 2
  for (int i = threadIdx.x * nanochat::VECTOR; i < V; i += blockDim.x * nanochat::VECTOR) {
    float x[8];
    nanochat::load(from + i, x);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      float e, p, c;
      asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x[j] * TO_E));
      asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(c) : "f"(1.f + e));
      asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(p) : "f"(c * TO_P));
      p *= inverse;
      if (i + j == target) p -= 1.f;
      x[j] = i + j < USED ? p * 4.f * c * (1.f - c) : 0.f;
    }
    nanochat::store(to + i, x);
  }
""",
)


def losses_and_gradient(logits: mx.array, targets: mx.array, *, vocab_size: int) -> tuple[mx.array, mx.array]:
    """Return (losses (R,) float32, gradient of their sum for the logits (R, V) in the logits' dtype).

    Args:
        logits: (R, V) before the softcap; V a multiple of 8.
        targets: (R,) int32; rows with -1 have neither loss nor gradient.
        vocab_size: columns that exist; the columns after them are padding.
    """
    losses, gradient = _launch(logits, targets, vocab_size, has_gradient=True)
    return losses, gradient


def losses(logits: mx.array, targets: mx.array, *, vocab_size: int) -> mx.array:
    """Return only the losses, (R,) float32; arguments as in `losses_and_gradient`."""
    return _launch(logits, targets, vocab_size, has_gradient=False)[0]


def _launch(logits: mx.array, targets: mx.array, vocab_size: int, *, has_gradient: bool) -> list[mx.array]:
    rows, columns = logits.shape
    return _LOSSES(
        logits,
        targets.astype(mx.int32),
        blocks=rows,
        threads=_THREADS,
        shapes=[(rows,), logits.shape if has_gradient else (1,)],
        dtypes=[mx.float32, logits.dtype],
        sizes=[],
        constants={
            "V": columns,
            "USED": vocab_size,
            "HAS_GRADIENT": has_gradient,
            "TO_E": 2 / SOFTCAP * math.log2(math.e),
            "TO_P": -2 * SOFTCAP * math.log2(math.e),
        },
    )


def _add_product(total: mx.array | None, gradient: mx.array, rows: mx.array) -> mx.array:
    """Return total + gradient^T rows, (V, C) in the rows' dtype.

    Few chunks are summed, inside the matrix product, so that the sum is rounded no more than the gradient itself.
    """
    return gradient.T @ rows if total is None else mx.addmm(total, gradient.T, rows)


def _scaled(gradient: mx.array, factor: mx.array) -> mx.array:
    """Return gradient * factor in the gradient's dtype. MLX would fuse cast and product, and compile them first."""
    return scale_rows(gradient.reshape(-1), factor.reshape(1)).reshape(gradient.shape)


KERNELS = LossKernels(_CHUNK_ELEMENTS, losses, losses_and_gradient, _add_product, _scaled, scale_rows)
