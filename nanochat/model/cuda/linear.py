"""A linear map whose weight gradient is laid out like the weight and computed before the input gradient is used."""

from __future__ import annotations

from typing import cast

import mlx.core as mx


def linear(x: mx.array, weight: mx.array) -> mx.array:
    """Return x W^T, (N, out) from (N, in) and (out, in), all of one dtype."""
    return cast("mx.array", _linear(x, weight))


@mx.custom_function
def _linear(x: mx.array, weight: mx.array) -> mx.array:
    return x @ weight.T


@_linear.vjp
def _backward(primals: tuple[mx.array, mx.array], cotangent: mx.array, _: mx.array) -> tuple[mx.array, mx.array]:
    x, weight = primals
    d_weight = cotangent.T @ x
    # MLX would postpone weight gradients to the end and keep all the activations that they need until then.
    (d_x,) = mx.depends([cotangent @ weight], [d_weight])
    return d_x, d_weight
