"""Cross-entropy of next tokens in nats, from tokens to a number, without ever holding all logits.

Rows of hidden states are taken in chunks: logits, softcap, softmax, loss and, in training, the gradients of that chunk,
before the next one begins (`capped_softmax`). Targets of -1 are ignored. Shapes: B batch, T time, C width,
V vocabulary, N = B * T, R rows of a chunk.
"""

from __future__ import annotations

from typing import cast

import mlx.core as mx

from nanochat.model.capped_softmax import IGNORED, capped_softmax
from nanochat.model.cpu import fast_math
from nanochat.model.cuda import cross_entropy
from nanochat.model.cuda.launch import runs_kernels
from nanochat.model.device import runs_on_cpu
from nanochat.model.gpt import GPT

_GPU_CHUNK_ELEMENTS = 2**27
"""Logits of a chunk on a GPU: 4,096 rows of 32,768, half a gigabyte in float32."""


def token_nats(model: GPT, idx: mx.array, targets: mx.array) -> mx.array:
    """Return float32 (B, T): -ln p(target) in nats, 0 where the target is -1; tokens and targets are (B, T).

    For evaluation: it refuses to be differentiated.
    """
    rows, flat = _hidden_rows(model, idx), targets.reshape(-1)
    if runs_kernels():
        weight = model.lm_head.weight.astype(rows.dtype)
        nats = cross_entropy.row_nats(rows, weight, flat, vocab_size=model.config.vocab_size)
    else:
        nats = cast("mx.array", _row_nats(rows, _vocabulary_rows(model), flat))
    return nats.reshape(targets.shape)


def summed_nats(model: GPT, idx: mx.array, targets: mx.array) -> mx.array:
    """Return the float32 sum of -ln p(target) over all targets that are not -1; for training.

    Gradients are computed along with the loss, chunk by chunk; for the loss alone `token_nats` is cheaper.
    """
    rows, flat = _hidden_rows(model, idx), targets.reshape(-1)
    if runs_kernels():
        weight = model.lm_head.weight.astype(rows.dtype)
        return cross_entropy.summed_nats(rows, weight, flat, vocab_size=model.config.vocab_size)
    results = _sum_and_gradients(rows, _vocabulary_rows(model), flat)
    return cast("tuple[mx.array, ...]", results)[0]


def plain_nats(logits: mx.array, targets: mx.array) -> mx.array:
    """Return the same as `token_nats` from float32 logits (..., V), written out: the chunked forms' reference."""
    is_counted = targets != IGNORED
    chosen = mx.take_along_axis(logits, mx.where(is_counted, targets, 0)[..., None], axis=-1)[..., 0]
    return mx.where(is_counted, mx.logsumexp(logits, axis=-1) - chosen, 0.0)


def _hidden_rows(model: GPT, idx: mx.array) -> mx.array:
    """Return the final hidden states as (N, C)."""
    hidden = model.hidden(idx)
    return hidden.reshape(-1, hidden.shape[-1])


def _vocabulary_rows(model: GPT) -> mx.array:
    """Return lm_head's rows without the padding, (V, C)."""
    return model.lm_head.weight[: model.config.vocab_size]


def _chunk_rows(vocab_size: int) -> int:
    elements = fast_math.BLOCK_ELEMENTS if runs_on_cpu() else _GPU_CHUNK_ELEMENTS
    return max(1, elements // vocab_size)


@mx.custom_function
def _row_nats(rows: mx.array, weight: mx.array, targets: mx.array) -> mx.array:
    """Return nats (N,) of hidden states (N, C), lm_head's rows (V, C) and targets (N,)."""
    size = _chunk_rows(weight.shape[0])
    nats: list[mx.array] = []
    for start in range(0, rows.shape[0], size):
        chunk = rows[start : start + size]
        if nats:
            (chunk,) = mx.depends([chunk], nats[-1:])  # one chunk's logits at a time
        nats.append(capped_softmax(chunk, weight, targets[start : start + size]).nats()[:, 0])
    return mx.concatenate(nats)


@_row_nats.vjp
def _refuse_gradient(*_: object) -> None:
    raise AssertionError("token_nats has no gradient: train on summed_nats")


@mx.custom_function
def _sum_and_gradients(rows: mx.array, weight: mx.array, targets: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Return (summed nats, its gradient for rows (N, C), its gradient for weight (V, C))."""
    size = _chunk_rows(weight.shape[0])
    total = mx.array(0.0)
    weight_gradient = mx.zeros(weight.shape)
    row_gradients: list[mx.array] = []
    for start in range(0, rows.shape[0], size):
        chunk = rows[start : start + size]
        (chunk,) = mx.depends([chunk], [total, weight_gradient, *row_gradients[-1:]])  # one chunk's logits at a time
        softmax = capped_softmax(chunk, weight, targets[start : start + size])
        total = total + softmax.nats().sum()
        gradient = softmax.raw_logit_gradient().astype(rows.dtype)
        row_gradients.append(gradient @ weight.astype(rows.dtype))
        weight_gradient = weight_gradient + (gradient.T @ chunk).astype(mx.float32)
    return total, mx.concatenate(row_gradients), weight_gradient.astype(weight.dtype)


@_sum_and_gradients.vjp
def _scale_gradients(
    primals: tuple[mx.array, mx.array, mx.array],
    cotangents: tuple[mx.array, ...],
    outputs: tuple[mx.array, mx.array, mx.array],
) -> tuple[mx.array, mx.array, mx.array]:
    """Return the gradients found on the way forward, times the one factor that a sum can have."""
    factor = cotangents[0]
    rows, weight = (factor.astype(gradient.dtype) * gradient for gradient in outputs[1:])
    return rows, weight, mx.zeros_like(primals[2])
