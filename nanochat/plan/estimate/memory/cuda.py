"""Peak memory of a training step on CUDA: the size of MLX's arrays, in bfloat16."""

from __future__ import annotations

from nanochat.model.config import GPTConfig
from nanochat.plan.estimate.memory.sizes import (
    PROCESS_BYTES,
    TrainingMemory,
    kept_bytes,
    optimizer_state_bytes,
    stream_bytes,
)

_KEPT_WIDTHS, _KEPT_SHARED_WIDTHS = 9, 3
"""Kept by a block of our kernels, in units of the width: residual 1, norms 2, queries, keys and values 3 (in half of
the layers 5), attention's output 1 and the squares of the MLP 4. Attention weights are recomputed, or never stored."""
_RECOMPUTED_SHARE = 6.0
"""Peak memory of one recomputed block, relative to what it would have stored without checkpointing (fitted). A GPU
works on several blocks at a time."""
_UNFINISHED_BYTES = 2**30
"""Most that a GPU holds of work that was submitted before: the previous step's update, and temporary arrays."""
_LOGITS_SHARE = 0.7
"""Share of a pass's logits and their gradients that exist at a time (fitted)."""


def cuda_training(config: GPTConfig, *, sequence_len: int, recomputes: bool) -> TrainingMemory:
    """Return the memory of a training step on rows of `sequence_len` tokens."""
    block = kept_bytes(config, "bfloat16", widths=_KEPT_WIDTHS, shared_widths=_KEPT_SHARED_WIDTHS)
    kept = config.n_layer * block
    if recomputes:
        kept = round(_RECOMPUTED_SHARE * block) + config.n_layer * config.n_embd * 2
    return TrainingMemory(
        weights=(4 + 2) * config.num_parameters(),
        gradients=2 * config.num_parameters(),
        optimizer_state=optimizer_state_bytes(config),
        per_row=sequence_len * (kept + stream_bytes(config)),
        logits_per_row=2 * 2 * sequence_len * config.padded_vocab_size,
        peak_of=_peak,
    )


def _peak(step: TrainingMemory, rows: int, accumulates: bool) -> int:
    """Return the peak. A step that accumulates also has float32 sums of the gradients."""
    kept = step.weights + step.gradients + step.optimizer_state + (2 * step.gradients if accumulates else 0)
    backward = rows * step.per_row + round(_LOGITS_SHARE * rows * step.logits_per_row)
    unfinished = min(_UNFINISHED_BYTES, 2 * (step.weights + step.optimizer_state))
    return PROCESS_BYTES["bfloat16"] + kept + backward + unfinished
