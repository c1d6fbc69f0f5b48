"""Muon: momentum, orthogonalized by Polar Express, with NorMuon's variance reduction and cautious weight decay.

All functions work on stacks of independent matrices (K, rows, cols). Sources: Jordan et al. 2024
(Muon); Amsel et al. 2025 (2505.16932, Polar Express); Li et al. 2025 (2510.05491, NorMuon); nanochat for `current`'s
equal rows and renormalisation. Not here: which parameters, learning rates and schedules (`groups`, `schedules`).
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from nanochat.optim.groups import Variant

Orthogonalize = Callable[[mx.array], mx.array]
"""`polar_express`, or `sharded_polar_express` with its group bound."""

POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""Coefficients (a, b, c) of the five quintics aX + (bA + cA^2)X, A = XX^T, with a safety factor of 2 %."""
NORM_FACTOR = {"plain": 1.02, "current": 1.01}
"""Safety factor on the norm before the iteration, so that no singular value exceeds 1."""
TINY_NORM = 1e-6
TINY_VARIANCE = 1e-10


def polar_express(x: mx.array) -> mx.array:
    """Return about the nearest orthogonal matrices of stacked matrices (K, rows, cols) with norms below 1.

    The result has the matrices' dtype. It is approximate by design: singular values are within about 0.3 of 1, so the
    rounding of bfloat16 does not matter.
    """
    rows, cols = x.shape[-2:]
    is_tall = rows > cols
    for a, b, c in POLAR_EXPRESS:
        transposed = x.swapaxes(-1, -2)
        gram = transposed @ x if is_tall else x @ transposed
        polynomial = mx.addmm(gram, gram, gram, alpha=c, beta=b)
        x = mx.addmm(x, x, polynomial, beta=a) if is_tall else mx.addmm(x, polynomial, x, beta=a)
    return x


def sharded_polar_express(x: mx.array, *, group: mx.distributed.Group) -> mx.array:
    """Return the result of `polar_express`, with the K matrices divided among the processes of the group.

    If K is not a multiple of the processes, the last processes also work on matrices of zeros.
    """
    count = x.shape[0]
    share = -(-count // group.size())
    first = group.rank() * share
    mine = mx.pad(x, [(0, share * group.size() - count), (0, 0), (0, 0)])[first : first + share]
    return mx.distributed.all_gather(polar_express(mine), group=group)[:count]


def muon_update(
    parameter: mx.array,
    gradient: mx.array,
    momentum_buffer: mx.array,
    second_moment: mx.array,
    *,
    variant: Variant,
    lr: float | mx.array,
    momentum: float | mx.array,
    beta2: float,
    weight_decay: float | mx.array,
    orthogonalize: Orthogonalize = polar_express,
) -> tuple[mx.array, mx.array, mx.array]:
    """Return (parameter, momentum buffer, second moment) after one step.

    Arithmetic is float32, and the parameter keeps its dtype.

    Args:
        parameter: (K, rows, cols).
        gradient: the same shape.
        momentum_buffer: the same shape, float32.
        second_moment: `second_moment_shape`, float32.
        variant: `current` scales rows to equal norms before orthogonalizing, and renormalizes afterwards.
        lr: learning rate at this step, before the factor sqrt(max(1, rows / cols)).
        momentum: of the moving average of gradients, and of the Nesterov mix.
        beta2: of the moving average of squared updates.
        weight_decay: applied only where update and parameter have the same sign.
        orthogonalize: the Polar Express iteration.
    """
    gradient = gradient.astype(mx.float32)
    momentum_buffer = momentum * momentum_buffer + (1 - momentum) * gradient
    direction = (1 - momentum) * gradient + momentum * momentum_buffer
    direction = polar(direction, variant=variant, orthogonalize=orthogonalize)
    rows, cols = parameter.shape[-2:]
    if variant == "current":
        direction = direction * (min(rows, cols) ** 0.5 / mx.maximum(_norm(direction), TINY_NORM))
    direction, second_moment = reduce_variance(direction, second_moment, beta2=beta2)
    rate = lr * max(1.0, rows / cols) ** 0.5
    exact = parameter.astype(mx.float32)
    decay = mx.where(direction * exact >= 0, exact, 0.0)
    updated = exact - rate * direction - (rate * weight_decay) * decay
    return updated.astype(parameter.dtype), momentum_buffer, second_moment


def polar(matrices: mx.array, *, variant: Variant, orthogonalize: Orthogonalize = polar_express) -> mx.array:
    """Return about the nearest (semi-)orthogonal matrix of each of (K, rows, cols), float32."""
    x = matrices
    rows = x.shape[-2]
    if variant == "current":
        row_norms = mx.maximum(_norm(x, axis=-1), TINY_NORM)
        x = x * (_norm(x) / rows**0.5 / row_norms)
    x = x / (NORM_FACTOR[variant] * _norm(x) + TINY_NORM)
    return orthogonalize(x)


def reduce_variance(direction: mx.array, second_moment: mx.array, *, beta2: float) -> tuple[mx.array, mx.array]:
    """Return (direction with evened row or column norms and unchanged Frobenius norm, second moment)."""
    rows, cols = direction.shape[-2:]
    squares = mx.mean(mx.square(direction), axis=-1 if rows >= cols else -2, keepdims=True)
    second_moment = beta2 * second_moment + (1 - beta2) * squares
    evened = direction * mx.rsqrt(mx.maximum(second_moment, TINY_VARIANCE))
    restored = evened * (_norm(direction) / mx.maximum(_norm(evened), TINY_VARIANCE))
    return restored, second_moment


def second_moment_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the second moment of (..., rows, cols): a value per row if rows >= cols, else per column."""
    *stack, rows, cols = shape
    return (*stack, rows, 1) if rows >= cols else (*stack, 1, cols)


def _norm(x: mx.array, axis: int | tuple[int, int] = (-2, -1)) -> mx.array:
    """Return the Frobenius norm, axes kept."""
    return mx.sqrt(mx.sum(mx.square(x), axis=axis, keepdims=True))
