"""relu(x)^2 on CUDA. The backward pass keeps only the result, whose square root is relu(x)."""

from __future__ import annotations

from typing import cast

import mlx.core as mx

from nanochat.model.cuda.launch import elementwise

_FORWARD = elementwise("squared_relu", ("x",), "squares", "fmaxf(x, 0.f) * fmaxf(x, 0.f)")
_BACKWARD = elementwise("squared_relu_backward", ("d_squares", "squares"), "d_x", "d_squares * (2.f * sqrtf(squares))")


def squared_relu(x: mx.array) -> mx.array:
    """Return relu(x)^2, (N, W) in x's dtype."""
    return cast("mx.array", _squared_relu(x))


@mx.custom_function
def _squared_relu(x: mx.array) -> mx.array:
    return _FORWARD.map(x, dtypes=[x.dtype])[0]


@_squared_relu.vjp
def _backward(_: mx.array, cotangent: mx.array, squares: mx.array) -> mx.array:
    return _BACKWARD.map(cotangent, squares, dtypes=[cotangent.dtype])[0]
