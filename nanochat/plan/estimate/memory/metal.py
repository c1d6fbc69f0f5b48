"""Peak memory of a training step on a Mac's GPU: the size of MLX's arrays.

Fitted to peaks of Metal's path on other devices: see `tests/benchmarks/results/metal.md`.
"""

from __future__ import annotations

from functools import partial

from nanochat.model.config import GPTConfig
from nanochat.plan.estimate.memory.sizes import (
    VALUE_BYTES,
    Dtype,
    TrainingMemory,
    kept_bytes,
    optimizer_state_bytes,
    stream_bytes,
)

_KEPT_WIDTHS, _KEPT_SHARED_WIDTHS = 17.0, 4.0
"""Kept by a block, in units of the width. Of the MLP's hidden layer it keeps only the square. Fitted to peaks."""
_RECOMPUTED_SHARE = 2.0
"""Peak memory of one recomputed block, relative to what it would have stored without checkpointing (fitted)."""
_INPUT_WIDTHS = 4
"""Widths that a recomputed block keeps: its input, and what its residual mix needs."""
_LOGITS = 2**24
"""Logits of a chunk (`model.low_memory.loss`)."""
_CHUNKS = 8
"""Arrays of the size of a chunk, in float32, that exist at a time: MLX submits work before earlier work is finished."""
_SHARE = 0.96
"""The peak relative to the sum of the parts: 0.88 to 0.90 in bfloat16 and 0.93 in float32, because the update frees old
values one after the other, and 0.98 when it is submitted at once."""


def metal_training(config: GPTConfig, *, sequence_len: int, dtype: Dtype, recomputes: bool) -> TrainingMemory:
    """Return the memory of a training step on rows of `sequence_len` tokens."""
    parameters = config.num_parameters()
    block = kept_bytes(config, dtype, widths=_KEPT_WIDTHS, shared_widths=_KEPT_SHARED_WIDTHS)
    kept = config.n_layer * block
    if recomputes:
        inputs = config.n_layer * config.n_embd * VALUE_BYTES[dtype] * _INPUT_WIDTHS
        kept = round(_RECOMPUTED_SHARE * block) + inputs
    return TrainingMemory(
        weights=4 * parameters + (0 if dtype == "float32" else VALUE_BYTES[dtype] * parameters),
        gradients=VALUE_BYTES[dtype] * parameters,
        optimizer_state=optimizer_state_bytes(config),
        per_row=sequence_len * (kept + stream_bytes(config)),
        logits_per_row=_CHUNKS * 4 * sequence_len * config.padded_vocab_size,
        peak_of=partial(_peak, masters=4 * parameters),
    )


def _peak(step: TrainingMemory, rows: int, accumulates: bool, *, masters: int) -> int:
    """Return the peak. `masters` are the bytes of the float32 weights, without copies, which exist in passes only.

    Gradients take the place of the activations that they need. So the passes need most memory before there are
    gradients, or when their float32 sums over micro-batches exist twice. The update makes new weights and a new state
    before the device frees the old ones.
    """
    sums = masters if accumulates else 0
    activations = rows * step.per_row + min(_CHUNKS * 4 * _LOGITS, rows * step.logits_per_row)
    passes = step.weights - masters + sums + max(activations, sums + step.gradients)
    update = step.gradients + masters + step.optimizer_state
    return round(_SHARE * (masters + step.optimizer_state + max(passes, update)))
