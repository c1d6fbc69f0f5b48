"""Muon on CUDA: kernels around the matrix products of the Polar Express iteration, in few passes over the matrices.

It computes what `muon.muon_update` computes, with three differences. The iteration runs in the gradients' dtype, to
which `plain` also rounds the factor before it. All norms come from one sum of squares per row or column. A step with
gradients that are not finite changes nothing.
Shapes: stacks of K matrices of (rows, cols).
"""

from __future__ import annotations

import mlx.core as mx

from nanochat.model.cuda.launch import THREADS
from nanochat.model.cuda.scale_rows import scale_rows
from nanochat.model.device import runs_kernels
from nanochat.optim.groups import Variant
from nanochat.optim.muon import NORM_FACTOR, TINY_NORM, TINY_VARIANCE, Orthogonalize, polar_express
from nanochat.optim.muon_kernels import APPLY, COLUMN_SQUARES, FACTORS, ROW_SCALES, ROW_SQUARES, momentum_kernel


def applies(stack: mx.array) -> bool:
    """Return whether this device runs the kernels and they support matrices of this shape."""
    return stack.shape[-1] % 8 == 0 and runs_kernels()


def fused_muon_update(
    parameter: mx.array,
    gradients: list[mx.array],
    momentum_buffer: mx.array,
    second_moment: mx.array,
    *,
    variant: Variant,
    lr: float | mx.array,
    momentum: float | mx.array,
    beta2: float,
    weight_decay: float | mx.array,
    is_finite: mx.array,
    orthogonalize: Orthogonalize = polar_express,
) -> tuple[mx.array, mx.array, mx.array]:
    """Return (parameter, momentum buffer, second moment) after one step, or unchanged if `is_finite` is False.

    Arguments as in `muon.muon_update`, with `is_finite` a bool scalar, and `gradients` K matrices instead of a stack;
    the iteration has their dtype.
    """
    rows, cols = parameter.shape[-2:]
    guard = is_finite.reshape(1)
    lr, kept, decay = (mx.array(rate, mx.float32).reshape(1) for rate in (lr, momentum, weight_decay))
    kernel = momentum_kernel(len(gradients), rows * cols)
    dtypes = [mx.float32, gradients[0].dtype]
    buffer, direction = kernel.map(momentum_buffer, *gradients, kept, guard, dtypes=dtypes)
    direction = orthogonalize(_normalized(direction, variant))
    squares = (_row_squares if rows >= cols else _column_squares)(direction)
    factors, second = _variance_reduction(
        squares, second_moment, guard, variant=variant, shape=(rows, cols), beta2=beta2
    )
    constants = {"ROWS": rows, "COLS": cols, "BY_ROW": rows >= cols, "ASPECT": max(1.0, rows / cols) ** 0.5}
    arrays = (parameter, direction, factors, lr, decay, guard)
    (updated,) = APPLY.map(*arrays, dtypes=[mx.float32], constants=constants)
    return updated, buffer, second


def _normalized(x: mx.array, variant: Variant) -> mx.array:
    """Return x scaled to Frobenius norms below 1; in `current`, rows are first scaled to equal norms."""
    count, rows, _ = x.shape
    constants = {"ROWS": rows, "EVENS": variant == "current", "FACTOR": NORM_FACTOR[variant], "TINY": TINY_NORM}
    squares, shapes, dtypes = _row_squares(x), [(count, rows, 1)], [mx.float32]
    (scales,) = ROW_SCALES(squares, sizes=[], blocks=count, shapes=shapes, dtypes=dtypes, constants=constants)
    if variant == "plain":  # as its published form, which divides by a norm of the matrix's dtype
        scales = scales.astype(x.dtype).astype(mx.float32)
    return scale_rows(x, scales)


def _variance_reduction(
    squares: mx.array,
    second_moment: mx.array,
    is_finite: mx.array,
    *,
    variant: Variant,
    shape: tuple[int, int],
    beta2: float,
) -> tuple[mx.array, mx.array]:
    """Return (factor on each row or column of the direction, new second moment) from its sums of squares."""
    rows, cols = shape
    factors, second = FACTORS(
        squares,
        second_moment,
        is_finite,
        sizes=[],
        blocks=squares.shape[0],
        shapes=[squares.shape] * 2,
        dtypes=[mx.float32] * 2,
        constants={
            "COUNT": max(rows, cols),
            "TERMS": float(min(rows, cols)),
            "RANK": min(rows, cols),
            "RENORMALIZES": variant == "current",
            "BETA2": beta2,
            "TINY": TINY_NORM,
            "TINY_VARIANCE": TINY_VARIANCE,
        },
    )
    return factors, second


def _row_squares(x: mx.array) -> mx.array:
    """Return sums of squares (K, rows, 1) float32."""
    count, rows, cols = x.shape
    blocks = -(-count * rows // (THREADS // 32))
    sizes, constants = [count * rows], {"COLS": cols}
    shapes, dtypes = [(count, rows, 1)], [mx.float32]
    return ROW_SQUARES(x, sizes=sizes, blocks=blocks, shapes=shapes, dtypes=dtypes, constants=constants)[0]


def _column_squares(x: mx.array) -> mx.array:
    """Return sums of squares (K, 1, cols) float32."""
    count, rows, cols = x.shape
    blocks, constants = count * -(-cols // 256), {"ROWS": rows, "COLS": cols}
    shapes, dtypes = [(count, 1, cols)], [mx.float32]
    return COLUMN_SQUARES(x, sizes=[], blocks=blocks, shapes=shapes, dtypes=dtypes, constants=constants)[0]
