"""AdamW with bias correction (Loshchilov and Hutter 2019, 1711.05101), for any shape."""

from __future__ import annotations

import math

import mlx.core as mx


def adamw_update(
    parameter: mx.array,
    gradient: mx.array,
    first_moment: mx.array,
    second_moment: mx.array,
    *,
    step: mx.array,
    lr: float | mx.array,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> tuple[mx.array, mx.array, mx.array]:
    """Return (parameter, first moment, second moment) after step number `step`, counted from 1.

    Arithmetic is float32, and the parameter keeps its dtype. The decay comes before the update, at the same rate. If a
    gradient was 0 at every step, only the decay changes the parameter.
    """
    beta1, beta2 = betas
    gradient = gradient.astype(mx.float32)
    first_moment = beta1 * first_moment + (1 - beta1) * gradient
    second_moment = beta2 * second_moment + (1 - beta2) * mx.square(gradient)
    correction1, correction2 = (-mx.expm1(step * math.log(beta)) for beta in betas)  # 1 - beta^step, not cancelled
    denominator = mx.sqrt(second_moment / correction2) + eps
    exact = parameter.astype(mx.float32)
    if weight_decay:
        exact = exact * (1 - lr * weight_decay)
    updated = exact - (lr / correction1) * (first_moment / denominator)
    return updated.astype(parameter.dtype), first_moment, second_moment
