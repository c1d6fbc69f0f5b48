"""Peak memory of training and of decoding, by formula from the model's shape; bytes throughout.

What is counted: weights, gradients, optimizer state, activations kept for the backward pass, one chunk of logits. Not
counted: the allocator's slack, which on a GPU may add a fifth. The planned peak stands beside the measured one in each
stage's record; `tests/plan` holds it to the peaks in the project's measurements.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from nanochat.model.config import GPTConfig
from nanochat.optim.groups import MuonGroup, OptimizerConfig, build_groups

Dtype = Literal["float32", "bfloat16"]

VALUE_BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2}
PROCESS_BYTES = 160 * 2**20
"""Python with numpy, MLX and SentencePiece loaded, and the buffers of the data loader."""
LOSS_CHUNK_TOKENS: dict[Dtype, int] = {"float32": 256, "bfloat16": 4096}
"""Tokens whose logits exist at a time, on a CPU (fp32) and a GPU (bf16)."""


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Bytes of a training step: what stays whatever the micro-batch, and what each row of it adds."""

    weights: int
    gradients: int
    optimizer_state: int
    logits: int
    per_row: int

    def peak(self, rows: int) -> int:
        """Return the peak with micro-batches of `rows` rows."""
        fixed = self.weights + self.gradients + self.optimizer_state + self.logits + PROCESS_BYTES
        return fixed + rows * self.per_row

    def largest_rows(self, limit_bytes: int) -> int:
        """Return how many rows fit under `limit_bytes`; 0 where not even one does."""
        return max(0, (limit_bytes - self.peak(0)) // self.per_row)


def training_memory(
    config: GPTConfig, *, sequence_len: int, dtype: Dtype, activation_checkpointing: bool = False
) -> TrainingMemory:
    """Return the memory of a training step on rows of `sequence_len` tokens.

    Weights are fp32, with a second copy in the compute type where that is bf16; gradients are fp32, twice while a
    micro-batch's are added to the sum; Muon keeps one fp32 value per weight, AdamW two.
    """
    parameters = config.num_parameters()
    copy = VALUE_BYTES[dtype] if dtype == "bfloat16" else 0
    per_token = config.n_layer * config.n_embd * VALUE_BYTES[dtype]  # each block's input
    if activation_checkpointing:
        per_token += _block_bytes_per_token(config, 0, sequence_len, dtype)
    else:
        per_token = sum(_block_bytes_per_token(config, i, sequence_len, dtype) for i in range(config.n_layer))
    return TrainingMemory(
        weights=parameters * (4 + copy),
        gradients=parameters * 4 * 2,
        optimizer_state=optimizer_state_bytes(config),
        logits=2 * LOSS_CHUNK_TOKENS[dtype] * config.padded_vocab_size * 4,
        per_row=sequence_len * (per_token + 4 * config.n_embd * 4),  # embedding, x0, final norm and its gradient
    )


def _block_bytes_per_token(config: GPTConfig, layer: int, sequence_len: int, dtype: Dtype) -> int:
    """Return what a block keeps for its backward pass, per token.

    In units of the width: residual mix 2, norm 1, q before and after rotation and norm 3, k and v likewise 5 (times the
    share of key/value heads), attention's output 1, its projection 1, norm 1, the MLP's hidden before and after relu
    and square 12, its projection 1. On a CPU (fp32) the scores and probabilities of attention are kept besides; a GPU's
    fused attention keeps none.
    """
    kv_share = config.n_kv_head / config.n_head
    values = config.n_embd * (22 + 5 * kv_share)
    if dtype == "float32":
        values += 2 * config.n_head * sequence_len
    return round(values * VALUE_BYTES[dtype])


def optimizer_state_bytes(config: GPTConfig) -> int:
    """Return the optimizer's state: Muon's momentum and its second moment per row or column, AdamW's two moments."""
    shapes = config.parameter_shapes()
    values = 0
    for group in build_groups(config, OptimizerConfig(), tokens_per_step=1):
        is_muon = isinstance(group, MuonGroup)
        for name in group.names:
            size = _size(shapes[name])
            values += size + max(shapes[name]) if is_muon else 2 * size
    return 4 * values


def checkpoint_bytes(config: GPTConfig) -> int:
    """Return the size of one training checkpoint: fp32 weights and optimizer state."""
    return 4 * config.num_parameters() + optimizer_state_bytes(config)


def decoding_bytes(config: GPTConfig, *, rows: int, tokens: int, dtype: Dtype) -> int:
    """Return the peak of generating: weights, the KV cache of `rows` rows of `tokens` tokens, logits in fp32."""
    visible = sum(min(window + 1, tokens) for window in config.windows)
    cache = 2 * rows * visible * config.n_kv_head * config.head_dim * VALUE_BYTES[dtype]
    weights = config.num_parameters() * VALUE_BYTES[dtype]
    prefill = rows * tokens * 12 * config.n_embd * VALUE_BYTES[dtype]
    return PROCESS_BYTES + weights + cache + prefill + 2 * 4 * rows * config.padded_vocab_size


def largest_micro_batch(
    config: GPTConfig,
    limit_bytes: int,
    *,
    tokens_per_step: int,
    sequence_len: int,
    dtype: Dtype,
    activation_checkpointing: bool = False,
    at_most: int | None = None,
) -> int:
    """Return the rows per forward pass to use under a memory limit; 0 where not even one row fits.

    The largest divisor of the step's rows that fits (equal micro-batches), of at most `at_most` rows.
    """
    memory = training_memory(
        config, sequence_len=sequence_len, dtype=dtype, activation_checkpointing=activation_checkpointing
    )
    rows_per_step = max(1, tokens_per_step // sequence_len)
    fits = min(memory.largest_rows(limit_bytes), rows_per_step, at_most or rows_per_step)
    return max(_divisors_up_to(rows_per_step, fits), default=0)


def _divisors_up_to(number: int, largest: int) -> Iterable[int]:
    return (n for n in range(1, largest + 1) if number % n == 0)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
