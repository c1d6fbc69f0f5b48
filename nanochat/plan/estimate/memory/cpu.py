"""Peak memory of a training step on a CPU: the size of the process, in float32."""

from __future__ import annotations

from nanochat.model.config import GPTConfig
from nanochat.plan.estimate.memory.sizes import (
    LOGIT_VALUES,
    TrainingMemory,
    kept_bytes,
    optimizer_state_bytes,
    process_peak,
    stream_bytes,
)

_KEPT_WIDTHS, _KEPT_SHARED_WIDTHS = 8.5, 3
"""Kept by a block of `model.cpu.training`, in units of the width: residual 1, norm 1, q before and after rotation
and norm 2, attention's output 1, norm 1, the MLP's hidden layer 4, and k, v and value embeddings 3.5 times the share of
key/value heads. Some of it shares memory, so the fitted numbers are smaller."""
_RECOMPUTED_SHARE = 2.3
"""Peak memory of one recomputed block, relative to what it would have stored without checkpointing (fitted)."""
_BACKWARD_WIDTHS = 12
"""Widths per token of the arrays that exist while the gradients of one block are computed (fitted)."""


def cpu_training(config: GPTConfig, *, sequence_len: int, recomputes: bool) -> TrainingMemory:
    """Return the memory of a training step on rows of `sequence_len` tokens."""
    block = kept_bytes(config, "float32", widths=_KEPT_WIDTHS, shared_widths=_KEPT_SHARED_WIDTHS)
    kept = config.n_layer * block
    if recomputes:
        kept = round(_RECOMPUTED_SHARE * block) + config.n_layer * config.n_embd * 4
    return TrainingMemory(
        weights=4 * config.num_parameters(),
        gradients=4 * config.num_parameters(),
        optimizer_state=optimizer_state_bytes(config),
        per_row=sequence_len * (kept + _BACKWARD_WIDTHS * config.n_embd * 4 + stream_bytes(config)),
        logits_per_row=2 * 4 * sequence_len * config.padded_vocab_size,
        peak_of=_peak,
    )


def _peak(step: TrainingMemory, rows: int, accumulates: bool) -> int:
    """Return the peak, which is in the backward pass or in the update.

    In the backward pass, gradients exist twice while those of a micro-batch are added to the sum. In the update, new
    weights and half of the new state exist beside the old.
    """
    kept = step.weights + step.gradients + step.optimizer_state
    backward = rows * step.per_row + min(2 * 4 * LOGIT_VALUES, rows * step.logits_per_row)
    backward += step.gradients if accumulates else 0
    update = step.weights + step.optimizer_state // 2
    return process_peak(kept + max(backward, update), "float32")
