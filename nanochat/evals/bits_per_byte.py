"""Computes bits per byte, a cross-entropy that does not depend on the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from nanochat.data.loaders.batches import Batch
from nanochat.model.dispatch import token_losses
from nanochat.model.gpt import GPT

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class BpbResult:
    """Bits per byte, and the sums that it is computed from."""

    bpb: float
    """Infinite if there was no byte to predict."""
    nats: float
    bytes: int
    tokens: int
    all_nats: float
    """Over all targets, also those without bytes, which are special tokens."""
    all_tokens: int

    @property
    def problem(self) -> str | None:
        """Why this is no measurement: there was no text, or the model's losses are not finite. None if it is one."""
        if self.bytes == 0:
            return "there is no text to predict"
        return None if math.isfinite(self.bpb) else f"the model has diverged: its loss is {self.nats}"


def evaluate_bpb(
    model: GPT, batches: Iterable[Batch], token_bytes: Ints, *, on_batch: Callable[[int], None] | None = None
) -> BpbResult:
    """Return sum of nats / (ln 2 * sum of bytes) over the same targets: those that are not -1 and have bytes.

    Args:
        model: its cross-entropies in nats are summed in float64.
        batches: what to predict.
        token_bytes: (vocab_size,) raw bytes of each token, 0 for specials.
        on_batch: called after each batch with the number of tokens counted so far.
    """
    nats, counted_bytes, counted_tokens = 0.0, 0, 0
    all_nats, all_tokens = 0.0, 0
    for batch in batches:
        targets = np.asarray(batch.targets)
        target_bytes = np.where(targets >= 0, token_bytes[np.maximum(targets, 0)], 0)
        values = np.array(token_losses(model, mx.array(batch.inputs), mx.array(targets)), dtype=np.float64)
        counts = target_bytes > 0
        nats += float(values[counts].sum())
        all_nats += float(values[targets >= 0].sum())
        all_tokens += int((targets >= 0).sum())
        counted_bytes += int(target_bytes.sum())
        counted_tokens += int(counts.sum())
        if on_batch is not None:
            on_batch(counted_tokens)
    bpb = nats / (math.log(2) * counted_bytes) if counted_bytes else math.inf
    return BpbResult(bpb, nats, counted_bytes, counted_tokens, all_nats, all_tokens)
