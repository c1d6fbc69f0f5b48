"""A CUDA kernel for AdamW, in one pass over parameter, gradient and moments.

The pass computes what `adamw.adamw_update` computes, but a step with gradients that are not finite changes nothing.
"""

from __future__ import annotations

import math

import mlx.core as mx

from nanochat.model.cuda.launch import THREADS, Kernel

_ADAMW = Kernel(
    "adamw",
    ("parameter", "gradient", "first", "second", "step", "lr", "is_finite"),
    ("updated", "new_first", "new_second"),
    ("count",),
    """
  const int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= count) return;
  const size_t at = (size_t)index * WIDTH;
  float p[8], g[8], m[8], v[8];
  if (WIDTH == nanochat::VECTOR) {
    nanochat::load(parameter + at, p);
    nanochat::load(gradient + at, g);
    nanochat::load(first + at, m);
    nanochat::load(second + at, v);
  } else {
    p[0] = parameter[at]; g[0] = nanochat::to_float(gradient[at]); m[0] = first[at]; v[0] = second[at];
  }
  if (is_finite[0]) {
    const float steps = step[0], rate = lr[0] / -expm1f(steps * LOG_BETA1);
    const float correction = 1.f / -expm1f(steps * LOG_BETA2);
    const float kept = 1.f - lr[0] * DECAY;
#pragma unroll
    for (int e = 0; e < WIDTH; ++e) {
      m[e] = BETA1 * m[e] + (1.f - BETA1) * g[e];
      v[e] = BETA2 * v[e] + (1.f - BETA2) * g[e] * g[e];
      p[e] = kept * p[e] - rate * m[e] / (sqrtf(v[e] * correction) + EPSILON);
    }
  }
  if (WIDTH == nanochat::VECTOR) {
    nanochat::store(updated + at, p);
    nanochat::store(new_first + at, m);
    nanochat::store(new_second + at, v);
  } else {
    updated[at] = p[0]; new_first[at] = m[0]; new_second[at] = v[0];
  }
""",
)


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

    Arguments as in `adamw.adamw_update`, with `is_finite` a bool scalar. Parameter and moments are float32, the
    gradient may be bfloat16.
    """
    scalars = step.reshape(1), mx.array(lr, mx.float32).reshape(1), is_finite.reshape(1)
    width = 8 if parameter.size % 8 == 0 else 1
    updated, first, second = _ADAMW(
        *(parameter, gradient, first_moment, second_moment, *scalars),
        sizes=[parameter.size // width],
        blocks=-(-parameter.size // width // THREADS),
        shapes=[parameter.shape] * 3,
        dtypes=[mx.float32] * 3,
        constants={
            "WIDTH": width,
            "BETA1": betas[0],
            "BETA2": betas[1],
            "LOG_BETA1": math.log(betas[0]),
            "LOG_BETA2": math.log(betas[1]),
            "EPSILON": eps,
            "DECAY": weight_decay,
        },
    )
    return updated, first, second
