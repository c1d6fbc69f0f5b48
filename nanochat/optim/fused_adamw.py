"""CUDA kernels for AdamW, in one pass over parameter, gradient and moments, and for the squared norm of gradients.

The pass computes what `adamw.adamw_update` computes, but a step with gradients that are not finite changes nothing.
"""

from __future__ import annotations

import math

import mlx.core as mx

from nanochat.model.cuda.launch import THREADS, VECTOR_INDEX, Kernel
from nanochat.model.device import runs_kernels

_ADAMW = Kernel(
    "adamw",
    ("parameter", "gradient", "first", "second", "step", "lr", "is_finite"),
    ("updated", "new_first", "new_second"),
    ("vectors",),
    VECTOR_INDEX
    + """
  float p[8], g[8], m[8], v[8];
  nanochat::load(parameter + at, p);
  nanochat::load(gradient + at, g);
  nanochat::load(first + at, m);
  nanochat::load(second + at, v);
  if (is_finite[0]) {
    const float count = step[0], rate = lr[0] / -expm1f(count * LOG_BETA1);
    const float correction = 1.f / -expm1f(count * LOG_BETA2);
    const float kept = 1.f - lr[0] * DECAY;
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      m[e] = BETA1 * m[e] + (1.f - BETA1) * g[e];
      v[e] = BETA2 * v[e] + (1.f - BETA2) * g[e] * g[e];
      p[e] = kept * p[e] - rate * m[e] / (sqrtf(v[e] * correction) + EPSILON);
    }
  }
  nanochat::store(updated + at, p);
  nanochat::store(new_first + at, m);
  nanochat::store(new_second + at, v);
""",
)

_SQUARES = Kernel(
    "sum_of_squares",
    ("x",),
    ("sums",),
    ("vectors",),
    """
  float total = 0.f;
  for (int vector = blockIdx.x * blockDim.x + threadIdx.x; vector < vectors; vector += gridDim.x * blockDim.x) {
    float values[8];
    nanochat::load(x + (size_t)vector * nanochat::VECTOR, values);
#pragma unroll
    for (int e = 0; e < 8; ++e) total += values[e] * values[e];
  }
  total = nanochat::sum_over_block(total);
  if (threadIdx.x == 0) sums[blockIdx.x] = total;
""",
)
_MAX_BLOCKS = 1056


def applies(parameter: mx.array) -> bool:
    """Return whether this device runs the kernels and they support an array of this shape."""
    return parameter.ndim == 2 and parameter.size % 8 == 0 and runs_kernels()


def fused_adamw_update(
    parameter: mx.array,
    gradient: mx.array,
    first_moment: mx.array,
    second_moment: mx.array,
    *,
    step: mx.array,
    lr: float | mx.array,
    is_finite: mx.array,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> tuple[mx.array, mx.array, mx.array]:
    """Return (parameter, first moment, second moment) after step number `step`, or unchanged if `is_finite` is False.

    Arguments as in `adamw.adamw_update`, with `is_finite` a bool scalar. Parameter and moments are float32 matrices,
    the gradient may be bfloat16.
    """
    scalars = step.reshape(1), mx.array([lr]), is_finite.reshape(1)
    updated, first, second = _ADAMW.map(
        *(parameter, gradient, first_moment, second_moment, *scalars),
        dtypes=[mx.float32] * 3,
        constants={
            "BETA1": betas[0],
            "BETA2": betas[1],
            "LOG_BETA1": math.log(betas[0]),
            "LOG_BETA2": math.log(betas[1]),
            "EPSILON": eps,
            "DECAY": weight_decay,
        },
    )
    return updated, first, second


def squared_norm(gradient: mx.array) -> mx.array:
    """Return the float32 sum of squares of an array, by the kernel if it supports the array."""
    if not applies(gradient):
        return mx.square(gradient.astype(mx.float32)).sum()
    blocks = min(_MAX_BLOCKS, -(-gradient.size // (THREADS * 8)))
    sizes = [gradient.size // 8]
    return _SQUARES(gradient, sizes=sizes, blocks=blocks, shapes=[(blocks,)], dtypes=[mx.float32])[0].sum()
