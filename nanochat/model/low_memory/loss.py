"""Cross-entropy of next tokens, in nats, from hidden states and lm_head, without ever holding all logits.

`plain_losses` writes the loss out. The chunked forms compute logits, softcap, softmax, losses and, for training,
gradients of one chunk of rows before the next chunk begins. A `LossKernels` does the work inside a chunk: `KERNELS`
here for Metal, others in `cpu.softcap_loss` and `cuda.softcap_loss`; `dispatch` chooses.

The softcap bounds the logits, so the softmax needs no pass for their maximum: e^15 times any vocabulary stays far below
the largest float32. Targets of -1 are ignored. Shapes: N rows, C width, V vocabulary, R rows of a chunk.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple, cast

import mlx.core as mx

from nanochat.model.config import SOFTCAP

IGNORED = -1
"""Target of a position that has no loss."""
_CHUNK_ELEMENTS = 2**24
"""Logits per chunk on Metal: 512 rows of 32,768, 64 MiB in float32. Several such arrays exist at a time."""


def plain_losses(logits: mx.array, targets: mx.array) -> mx.array:
    """Return -ln p(target) from float32 logits (..., V), 0 where the target is -1: the chunked forms' reference."""
    is_counted = targets != IGNORED
    chosen = mx.take_along_axis(logits, mx.where(is_counted, targets, 0)[..., None], axis=-1)[..., 0]
    return mx.where(is_counted, mx.logsumexp(logits, axis=-1) - chosen, 0.0)


class LossKernels(NamedTuple):
    """The computations of a device inside a chunk.

    The first two functions take logits before the softcap (R, V or more) and targets (R,), and as `vocab_size` the
    number of columns that exist; losses are float32 (R,).
    """

    chunk_elements: int
    """Logits per chunk."""
    losses: Callable[..., mx.array]
    losses_and_gradient: Callable[..., tuple[mx.array, mx.array]]
    """The gradient is that of the summed losses for the logits, in their dtype."""
    add_product: Callable[[mx.array | None, mx.array, mx.array], mx.array]
    """(sum so far or None, gradient of the logits (R, V), rows (R, C)) -> sum of the gradients for lm_head (V, C)."""
    scaled: Callable[[mx.array, mx.array], mx.array]
    """(gradient, float32 scalar) -> their product in the gradient's dtype."""
    times_rows: Callable[[mx.array, mx.array], mx.array]
    """(x (R, C), float32 factors (R,)) -> x with each row multiplied by its factor, rounded once."""


@functools.cache
def chunked_losses(kernels: LossKernels, vocab_size: int) -> Callable[[mx.array, mx.array, mx.array], mx.array]:
    """Return the function of hidden states (N, C), lm_head's weight (V, C) and targets (N,) that gives losses (N,)."""

    @mx.custom_function
    def run(rows: mx.array, weight: mx.array, targets: mx.array) -> mx.array:
        weight = weight.astype(rows.dtype)
        losses: list[mx.array] = []
        for chunk, chunk_targets in _chunks(max(1, kernels.chunk_elements // weight.shape[0]), rows, targets):
            (waiting,) = mx.depends([chunk], losses[-1:]) if losses else (chunk,)  # one chunk's logits at a time
            losses.append(kernels.losses(waiting @ weight.T, chunk_targets, vocab_size=vocab_size))
        return mx.concatenate(losses)

    @run.vjp
    def _refuse_gradient(*_: object) -> None:
        raise AssertionError("token_losses has no gradient: train on summed_loss")

    return cast("Callable[[mx.array, mx.array, mx.array], mx.array]", run)


@functools.cache
def chunked_sum(kernels: LossKernels, vocab_size: int) -> Callable[..., tuple[mx.array, mx.array, mx.array]]:
    """Return the function of the same arguments that gives the sum of the losses, differentiable, and its gradients.

    A fourth argument (N,), float32, is a factor on each loss.
    """

    @mx.custom_function
    def run(
        rows: mx.array, weight: mx.array, targets: mx.array, *factors: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        total, weight_gradient = mx.array(0.0), None
        row_gradients: list[mx.array] = []
        cast_weight = weight.astype(rows.dtype)
        size = max(1, kernels.chunk_elements // weight.shape[0])
        for chunk, chunk_targets, *of_chunk in _chunks(size, rows, targets, *factors):
            if weight_gradient is not None:  # one chunk's logits at a time
                (chunk,) = mx.depends([chunk], [total, weight_gradient, row_gradients[-1]])
            losses, gradient = kernels.losses_and_gradient(chunk @ cast_weight.T, chunk_targets, vocab_size=vocab_size)
            row_gradient = gradient @ cast_weight
            if of_chunk:  # the factors go to the products, which are smaller than the gradient of the logits
                losses = losses * of_chunk[0]
                row_gradient, chunk = (kernels.times_rows(x, of_chunk[0]) for x in (row_gradient, chunk))
            total = total + losses.sum()
            row_gradients.append(row_gradient)
            weight_gradient = kernels.add_product(weight_gradient, gradient, chunk)
        assert weight_gradient is not None, "there is at least one row"
        return total, mx.concatenate(row_gradients), weight_gradient.astype(weight.dtype)

    @run.vjp
    def _scale(
        primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
    ) -> tuple[mx.array, ...]:
        """Return the gradients that the forward pass computed, times the one factor that a sum can have."""
        rows, weight = (kernels.scaled(gradient, cotangents[0]) for gradient in outputs[1:])
        return rows, weight, *map(mx.zeros_like, primals[2:])

    return cast("Callable[..., tuple[mx.array, mx.array, mx.array]]", run)


def _chunks(size: int, *arrays: mx.array) -> Iterator[tuple[mx.array, ...]]:
    for start in range(0, arrays[0].shape[0], size):
        yield tuple(array[start : start + size] for array in arrays)


def _times_rows(x: mx.array, factors: mx.array) -> mx.array:
    return (x.astype(mx.float32) * factors[:, None]).astype(x.dtype)


class CappedSoftmax(NamedTuple):
    """A chunk's softmax of softcapped logits; all float32, (R, 1) except for the first two."""

    tanh: mx.array  # (R, V), capped logits / SOFTCAP
    exponentials: mx.array  # (R, V), of the capped logits
    total: mx.array
    counted: mx.array  # 1, or 0 where the target is ignored
    target: mx.array  # 0 where ignored
    target_tanh: mx.array

    def losses(self) -> mx.array:
        """Return -ln p(target), 0 where it is ignored, (R,)."""
        return (self.counted * (mx.log(self.total) - SOFTCAP * self.target_tanh))[:, 0]

    def logit_gradient(self) -> mx.array:
        """Return the gradient of the summed losses with respect to the logits before the softcap, (R, V)."""
        inverse = self.counted / self.total
        dense = (self.exponentials * inverse) * (1 - mx.square(self.tanh))
        target_share = mx.exp(SOFTCAP * self.target_tanh) * inverse
        at_target = (target_share - self.counted) * (1 - mx.square(self.target_tanh))
        return mx.put_along_axis(dense, self.target, at_target, axis=-1)


def tanh_and_exponentials(x: mx.array) -> tuple[mx.array, mx.array]:
    """Return tanh(x) and e^(SOFTCAP * tanh(x)), in float32."""
    tanh = mx.tanh(x)
    return tanh, mx.exp(SOFTCAP * tanh)


Elementwise = Callable[[mx.array], tuple[mx.array, mx.array]]
"""`tanh_and_exponentials`, or a faster form of it."""


def capped_softmax(
    logits: mx.array, targets: mx.array, elementwise: Elementwise = tanh_and_exponentials
) -> CappedSoftmax:
    """Return the softmax of logits before the softcap (R, V), for targets (R,)."""
    tanh, exponentials = elementwise(logits.astype(mx.float32) * (1 / SOFTCAP))
    target = mx.maximum(targets, 0)[:, None]
    return CappedSoftmax(
        tanh=tanh,
        exponentials=exponentials,
        total=exponentials.sum(axis=-1, keepdims=True),
        counted=(targets != IGNORED).astype(mx.float32)[:, None],
        target=target,
        target_tanh=mx.take_along_axis(tanh, target, axis=-1),
    )


def target_logprobs(rows: mx.array, weight: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
    """Return ln p(target), float32, and whether the target is the likeliest token, the first of equal ones, both (R,).

    From hidden states (R, C), lm_head's weight without padding (V, C) and targets (R,), none of them ignored.
    """
    softmax = capped_softmax(rows @ weight.astype(rows.dtype).T, targets)
    return -softmax.losses(), mx.argmax(softmax.tanh, axis=-1) == softmax.target[:, 0]


def softmax_kernels(chunk_elements: int, elementwise: Elementwise) -> LossKernels:
    """Return kernels in plain MLX, which differ between devices only in their chunks and elementwise functions."""

    def losses(logits: mx.array, targets: mx.array, *, vocab_size: int) -> mx.array:
        return capped_softmax(logits, targets, elementwise).losses()

    def losses_and_gradient(logits: mx.array, targets: mx.array, *, vocab_size: int) -> tuple[mx.array, mx.array]:
        softmax = capped_softmax(logits, targets, elementwise)
        return softmax.losses(), softmax.logit_gradient().astype(logits.dtype)

    return LossKernels(chunk_elements, losses, losses_and_gradient, _add_product, _scaled, _times_rows)


def _add_product(total: mx.array | None, gradient: mx.array, rows: mx.array) -> mx.array:
    """Return total + gradient^T rows, (V, C). The sum over many chunks is float32."""
    product = (gradient.T @ rows).astype(mx.float32)
    return product if total is None else total + product


def _scaled(gradient: mx.array, factor: mx.array) -> mx.array:
    return factor.astype(gradient.dtype) * gradient


KERNELS = softmax_kernels(_CHUNK_ELEMENTS, tanh_and_exponentials)
