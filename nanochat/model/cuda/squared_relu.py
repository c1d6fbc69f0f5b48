"""relu(x)^2 on CUDA. The backward pass keeps only the result, whose square root is relu(x)."""

from __future__ import annotations

from typing import cast

import mlx.core as mx

from nanochat.model.cuda.launch import VECTOR_INDEX, Kernel

_FORWARD = Kernel(
    "squared_relu",
    ("x",),
    ("squares",),
    ("vectors",),
    VECTOR_INDEX
    + """
  float values[8];
  nanochat::load(x + at, values);
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    const float positive = fmaxf(values[e], 0.f);
    values[e] = positive * positive;
  }
  nanochat::store(squares + at, values);
""",
)

_BACKWARD = Kernel(
    "squared_relu_backward",
    ("d_squares", "squares"),
    ("d_x",),
    ("vectors",),
    VECTOR_INDEX
    + """
  float gradient[8], values[8];
  nanochat::load(d_squares + at, gradient);
  nanochat::load(squares + at, values);
#pragma unroll
  for (int e = 0; e < 8; ++e) gradient[e] *= 2.f * sqrtf(values[e]);
  nanochat::store(d_x + at, gradient);
""",
)


def squared_relu(x: mx.array) -> mx.array:
    """Return relu(x)^2, (N, W) in x's dtype."""
    return cast("mx.array", _squared_relu(x))


@mx.custom_function
def _squared_relu(x: mx.array) -> mx.array:
    return _FORWARD.map(x, dtypes=[x.dtype])[0]


@_squared_relu.vjp
def _backward(_: mx.array, cotangent: mx.array, squares: mx.array) -> mx.array:
    return _BACKWARD.map(cotangent, squares, dtypes=[cotangent.dtype])[0]
