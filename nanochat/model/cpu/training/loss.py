"""Cross-entropy of softcapped logits and its gradients in NumPy, a few rows at a time.

The capped logit c tanh(x / c) is c - 2c / (e^(2x / c) + 1), and a softmax does not depend on the constant c. So with
s = 1 / (e^(2x / c) + 1) the probabilities are e^(-2c s) over their sum, and the derivative of the capped logit is
4 s (1 - s).
"""

from __future__ import annotations

import numpy as np

from nanochat.model.config import SOFTCAP
from nanochat.model.cpu.training.layers import Tokens
from nanochat.model.low_memory.loss import IGNORED
from nanochat.model.rope_tables import Floats

_CHUNK_LOGITS = 256 * 1024


def loss_and_gradients(
    rows: Floats, weight: Floats, targets: Tokens, scale: float | Floats
) -> tuple[float, Floats, Floats]:
    """Return `scale` times the summed loss of hidden states (N, C), and its gradients for them and for lm_head (V, C).

    The weight comes without the rows that pad the vocabulary. Targets (N,) of -1 are ignored. `scale` is a number, or
    one for each target (N,).
    """
    chunk = max(1, _CHUNK_LOGITS // len(weight))
    row_gradients, weight_gradient = np.empty_like(rows), np.zeros_like(weight)
    shares, product = np.empty((chunk, len(weight)), dtype=np.float32), np.empty_like(weight)
    total, counted = 0.0, np.where(targets == IGNORED, 0, scale).astype(np.float32)
    for start in range(0, len(rows), chunk):
        part = slice(start, min(start + chunk, len(rows)))
        loss, gradient = _chunk(rows[part], weight, targets[part], counted[part], shares[: part.stop - part.start])
        np.matmul(gradient, weight, out=row_gradients[part])
        weight_gradient += np.matmul(gradient.T, rows[part], out=product)
        total += loss
    return total, row_gradients, weight_gradient


def _chunk(rows: Floats, weight: Floats, targets: Tokens, counted: Floats, shares: Floats) -> tuple[float, Floats]:
    """Return a chunk's loss and its gradient for the logits before the softcap (R, V), which is written to `shares`.

    `counted` (R,) is the factor on each loss, 0 where the target is ignored.
    """
    np.matmul(rows, weight.T, out=shares)
    shares *= np.float32(2 / SOFTCAP)
    np.exp(shares, out=shares)  # if it is infinite, s is 0 and the logit is the cap
    shares += 1
    np.reciprocal(shares, out=shares)
    probabilities = shares * np.float32(-2 * SOFTCAP)
    np.exp(probabilities, out=probabilities)
    totals = probabilities.sum(axis=-1)
    at = (np.arange(len(rows)), np.maximum(targets, 0))
    losses = counted * (np.log(totals) + np.float32(2 * SOFTCAP) * shares[at])
    probabilities *= (4 * counted / totals)[:, None]
    probabilities[at] -= 4 * counted
    probabilities *= shares
    np.subtract(1, shares, out=shares)
    shares *= probabilities
    return float(losses.sum(dtype=np.float64)), shares
