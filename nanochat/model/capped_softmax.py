"""Softmax of softcapped logits, from hidden states, with what loss, gradient and scores need of it.

The softcap bounds the logits, so the softmax needs no pass for their maximum: e^15 times any vocabulary stays far below
the largest float32. Shapes: R rows, C width, V vocabulary. Not here: how many rows at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import numpy as np

from nanochat.model.config import SOFTCAP
from nanochat.model.cpu import fast_math
from nanochat.model.device import runs_on_cpu

IGNORED = -1
"""Target of a position that has no loss."""


class CappedSoftmax(NamedTuple):
    """A chunk's softcapped softmax; all float32, (R, 1) but for the first two."""

    tanh: mx.array  # (R, V), logits / SOFTCAP
    exponentials: mx.array  # (R, V)
    total: mx.array
    counted: mx.array  # 1, or 0 where the target is ignored
    target: mx.array  # 0 where ignored
    target_tanh: mx.array

    def nats(self) -> mx.array:
        """Return -ln p(target), 0 where it is ignored, (R, 1)."""
        return self.counted * (mx.log(self.total) - SOFTCAP * self.target_tanh)

    def is_likeliest(self) -> mx.array:
        """Return whether the target is the likeliest token, the first of equal ones, (R,)."""
        return mx.argmax(self.tanh, axis=-1) == self.target[:, 0]

    def raw_logit_gradient(self) -> mx.array:
        """Return the gradient of the chunk's summed nats with respect to the logits before the softcap, (R, V)."""
        inverse = self.counted / self.total
        dense = (self.exponentials * inverse) * (1 - mx.square(self.tanh))
        target_share = mx.exp(SOFTCAP * self.target_tanh) * inverse
        at_target = (target_share - self.counted) * (1 - mx.square(self.target_tanh))
        return mx.put_along_axis(dense, self.target, at_target, axis=-1)


def capped_softmax(rows: mx.array, weight: mx.array, targets: mx.array) -> CappedSoftmax:
    """Return the softmax of hidden states (R, C) and lm_head's rows without padding (V, C), for targets (R,)."""
    raw = (rows @ weight.astype(rows.dtype).T).astype(mx.float32) * (1 / SOFTCAP)
    if runs_on_cpu():
        tanh = fast_math.tanh(raw)
        exponentials = fast_math.exp(tanh, SOFTCAP)
    else:
        tanh = mx.tanh(raw)
        exponentials = mx.exp(SOFTCAP * tanh)
    target = mx.maximum(targets, 0)[:, None]
    return CappedSoftmax(
        tanh=tanh,
        exponentials=exponentials,
        total=exponentials.sum(axis=-1, keepdims=True),
        counted=(targets != IGNORED).astype(mx.float32)[:, None],
        target=target,
        target_tanh=mx.take_along_axis(tanh, target, axis=-1),
    )


def judged(rows: mx.array, weight: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
    """Return ln p(target), float32, and whether the target is the likeliest token, the first of equal ones, both (R,).

    Arguments as in `capped_softmax`. On a CPU in NumPy, whose exp takes half the time of `fast_math`'s, and from
    c tanh(x / c) = c - 2c / (e^(2x / c) + 1), whose first term a softmax does not see: no gradient is taken here.
    """
    if not runs_on_cpu():
        softmax = capped_softmax(rows, weight, targets)
        return -softmax.nats()[:, 0], softmax.is_likeliest()
    raw = (rows @ weight.astype(rows.dtype).T).astype(mx.float32)
    mx.eval(raw)
    logits, wanted = np.array(raw, copy=False), np.array(targets)
    logits *= 2 / SOFTCAP
    with np.errstate(over="ignore"):  # infinity is right: the logit is then the cap
        np.exp(logits, out=logits)
    logits += 1
    np.divide(-2 * SOFTCAP, logits, out=logits)
    is_likeliest = logits.argmax(axis=-1) == wanted
    target = logits[np.arange(len(wanted)), wanted]
    np.exp(logits, out=logits)
    return mx.array(target - np.log(logits.sum(axis=-1))), mx.array(is_likeliest)
