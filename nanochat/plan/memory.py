"""Peak memory of training and of decoding, by formula from the model's shape; bytes throughout.

What is counted: weights, gradients, optimizer state, activations kept for the backward pass, one chunk of logits. Not
counted: the allocator's slack, which on a GPU may add a fifth. The planned peak stands beside the measured one in each
stage's record; `tests/plan` holds it to the peaks in the project's measurements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nanochat.model.config import GPTConfig
from nanochat.optim.groups import MuonGroup, OptimizerConfig, build_groups

Dtype = Literal["float32", "bfloat16"]

VALUE_BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2}
PROCESS_BYTES = 160 * 2**20
"""Python with numpy, MLX and SentencePiece loaded, and the buffers of the data loader."""
LOGIT_VALUES: dict[Dtype, int] = {"float32": 2**18, "bfloat16": 2**27}
"""Logits that exist at a time, on a CPU (fp32) and a GPU (bf16); their gradient as many again."""
CPU_MICRO_BATCH_TOKENS = 16_384
"""More tokens per forward pass are no faster on a CPU and leave its caches."""
_CPU_ATTENTION_VALUES = 64 * 6
"""On a CPU: queries of an attention block, times the copies of its weights that exist in the backward pass."""


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Bytes of a training step: what stays whatever the micro-batch, and what each row of it adds."""

    weights: int
    gradients: int
    optimizer_state: int
    per_row: int
    logits_at_most: int
    logits_per_row: int

    def peak(self, rows: int) -> int:
        """Return the peak with micro-batches of `rows` rows."""
        fixed = PROCESS_BYTES + self.weights + self.gradients + self.optimizer_state
        return fixed + rows * self.per_row + min(self.logits_at_most, rows * self.logits_per_row)


def training_memory(
    config: GPTConfig, *, sequence_len: int, dtype: Dtype, activation_checkpointing: bool = False
) -> TrainingMemory:
    """Return the memory of a training step on rows of `sequence_len` tokens.

    Weights are fp32, with a second copy in the compute type where that is bf16; gradients are fp32, twice while a
    micro-batch's are added to the sum; Muon keeps one fp32 value per weight, AdamW two.
    """
    parameters = config.num_parameters()
    copy = VALUE_BYTES[dtype] if dtype == "bfloat16" else 0
    block = _block_bytes_per_token(config, dtype)
    if activation_checkpointing:
        per_token = block + config.n_layer * config.n_embd * VALUE_BYTES[dtype]  # and each block's input
    else:
        per_token = config.n_layer * block
    if dtype == "float32":
        per_token += _CPU_ATTENTION_VALUES * config.n_head * 4
    return TrainingMemory(
        weights=parameters * (4 + copy),
        gradients=parameters * 4 * 2,
        optimizer_state=optimizer_state_bytes(config),
        per_row=sequence_len * (per_token + 4 * config.n_embd * 4),  # embedding, x0, final norm and its gradient
        logits_at_most=2 * 4 * LOGIT_VALUES[dtype],
        logits_per_row=2 * 4 * sequence_len * config.padded_vocab_size,
    )


def _block_bytes_per_token(config: GPTConfig, dtype: Dtype) -> int:
    """Return what a block keeps for its backward pass, per token.

    In units of the width: residual mix 2, norm 1, q before and after rotation and norm 3, k and v likewise 5 (times the
    share of key/value heads), attention's output 1, its projection 1, norm 1, the MLP's hidden before and after relu
    and square 12, its projection 1. Attention's weights are computed again, or never written (a GPU's fused form).
    """
    kv_share = config.n_kv_head / config.n_head
    return round(config.n_embd * (22 + 5 * kv_share) * VALUE_BYTES[dtype])


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
    divisors = (
        rows for rows in range(min(rows_per_step, at_most or rows_per_step), 0, -1) if rows_per_step % rows == 0
    )
    return next((rows for rows in divisors if memory.peak(rows) <= limit_bytes), 0)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
