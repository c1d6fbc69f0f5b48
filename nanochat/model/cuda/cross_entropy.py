"""Cross-entropy from hidden states in chunks: each chunk's logits become its nats and its gradients at once.

Shapes: N tokens, C width, V rows of lm_head with the padding, R rows of a chunk.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import cast

import mlx.core as mx

from nanochat.model.cuda.softcap_loss import nats_and_gradient, nats_of

_CHUNK_ELEMENTS = 2**28
"""Logits of a chunk: 8,192 rows of 32,768, half a gigabyte in bfloat16."""


def summed_nats(rows: mx.array, weight: mx.array, targets: mx.array, *, vocab_size: int) -> mx.array:
    """Return the float32 sum of nats of hidden states (N, C), lm_head's rows (V, C) and targets (N,); differentiable.

    Rows and weight have one dtype; logits and gradients have it too.
    """
    return _sum_and_gradients(vocab_size)(rows, weight, targets)[0]


def row_nats(rows: mx.array, weight: mx.array, targets: mx.array, *, vocab_size: int) -> mx.array:
    """Return nats (N,) float32; arguments as in `summed_nats`. Not differentiable."""
    return _row_nats(vocab_size)(rows, weight, targets)


@functools.cache
def _row_nats(vocab_size: int) -> Callable[..., mx.array]:
    @mx.custom_function
    def run(rows: mx.array, weight: mx.array, targets: mx.array) -> mx.array:
        nats: list[mx.array] = []
        for chunk, of_chunk in _chunks(rows, targets, weight.shape[0]):
            (waiting,) = mx.depends([chunk], nats[-1:]) if nats else (chunk,)
            nats.append(nats_of(waiting @ weight.T, of_chunk, vocab_size=vocab_size))
        return mx.concatenate(nats)

    @run.vjp
    def _refuse_gradient(*_: object) -> None:
        raise AssertionError("row_nats has no gradient: train on summed_nats")

    return cast("Callable[..., mx.array]", run)


@functools.cache
def _sum_and_gradients(vocab_size: int) -> Callable[..., tuple[mx.array, mx.array, mx.array]]:
    @mx.custom_function
    def run(rows: mx.array, weight: mx.array, targets: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        total, d_weight = mx.array(0.0), None
        d_rows: list[mx.array] = []
        for chunk, of_chunk in _chunks(rows, targets, weight.shape[0]):
            if d_weight is not None:
                (chunk,) = mx.depends([chunk], [d_weight, d_rows[-1]])  # one chunk's logits at a time
            nats, d_logits = nats_and_gradient(chunk @ weight.T, of_chunk, vocab_size=vocab_size)
            total = total + nats.sum()
            d_rows.append(d_logits @ weight)
            # The sum over few chunks is kept in the weight's dtype, inside the product: its rounding is the gradient's.
            d_weight = d_logits.T @ chunk if d_weight is None else mx.addmm(d_weight, d_logits.T, chunk)
        assert d_weight is not None, "there is at least one row"
        return total, mx.concatenate(d_rows), d_weight

    @run.vjp
    def _scale(
        primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
    ) -> tuple[mx.array, ...]:
        rows, weight = (cotangents[0].astype(gradient.dtype) * gradient for gradient in outputs[1:])
        return rows, weight, mx.zeros_like(primals[2])

    return cast("Callable[..., tuple[mx.array, mx.array, mx.array]]", run)


def _chunks(rows: mx.array, targets: mx.array, columns: int) -> Iterator[tuple[mx.array, mx.array]]:
    size = max(1, _CHUNK_ELEMENTS // columns)
    for start in range(0, rows.shape[0], size):
        yield rows[start : start + size], targets[start : start + size]
