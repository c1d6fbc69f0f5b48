"""Cross-entropy of next tokens in nats, from tokens to a number.

Targets of -1 are ignored. Shapes: B batch, T time, C width, V vocabulary, N = B * T.
"""

from __future__ import annotations

import mlx.core as mx

from nanochat.model.gpt import GPT

IGNORED = -1
"""Target of a position that has no loss."""


def token_nats(model: GPT, idx: mx.array, targets: mx.array) -> mx.array:
    """Return float32 (B, T): -ln p(target) in nats, 0 where the target is -1; tokens and targets are (B, T)."""
    return plain_nats(model.logits(model.hidden(idx)), targets)


def summed_nats(model: GPT, idx: mx.array, targets: mx.array) -> mx.array:
    """Return the float32 sum of -ln p(target) over all targets that are not -1."""
    return token_nats(model, idx, targets).sum()


def plain_nats(logits: mx.array, targets: mx.array) -> mx.array:
    """Return the same as `token_nats` from float32 logits (..., V), written out: the reference for every other form."""
    is_counted = targets != IGNORED
    chosen = mx.take_along_axis(logits, mx.where(is_counted, targets, 0)[..., None], axis=-1)[..., 0]
    return mx.where(is_counted, mx.logsumexp(logits, axis=-1) - chosen, 0.0)
