"""Peak memory of training, of scoring and of generating, by formula from the model's shape; bytes throughout.

What is counted: weights, gradients, optimizer state, activations kept for the backward pass, one chunk of logits. On a
CPU also the process itself and the heap's slack, since there the size of the process is what is measured; on a GPU the
arrays alone. float32 stands for a CPU and bfloat16 for a GPU, as `run.dtype: auto` has it. `tests/plan` holds the
formulas to measured peaks; `tests/benchmarks/memory.py` measures them anew.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from nanochat.model.config import GPTConfig
from nanochat.optim.groups import MuonGroup, OptimizerConfig, build_groups

Dtype = Literal["float32", "bfloat16"]

VALUE_BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2}
PROCESS_BYTES: dict[Dtype, int] = {"float32": 100 * 2**20, "bfloat16": 96 * 2**20}
"""CPU: Python with numpy, MLX, BLAS and SentencePiece, and the loader's buffers. GPU: workspaces of kernels."""
PARQUET_BYTES = 48 * 2**20
"""Of a process that reads parquet, besides: pyarrow and a row group."""
HEAP_SLACK: dict[Dtype, float] = {"float32": 1.25, "bfloat16": 1.1}
"""Over what is counted. CPU: freed pages are kept, in pieces that do not fit what comes next. GPU: work is sent ahead,
and what it frees is free when it is done."""
LOGIT_VALUES = 2**18
"""Logits that exist at a time on a CPU; their gradient as many again. A GPU is sent all chunks of a step at once."""
CPU_MICRO_BATCH_TOKENS = 16_384
"""More tokens per forward pass are no faster on a CPU and leave its caches."""
_CPU_ATTENTION_VALUES = 64 * 6
"""On a CPU: queries of an attention block, times the copies of its weights that exist in the backward pass."""
_CPU_SCORING_VALUES = 64 * 3
"""Likewise of a forward pass alone."""
_FORWARD_WIDTHS = 17.5
"""What a forward pass holds at most, in widths per token: residual, embedding, norm; the MLP's hidden before and after
relu and square."""
_GATHERED_WIDTHS: dict[Dtype, int] = {"float32": 6, "bfloat16": 70}
"""Likewise of queries, keys and values besides, where rows without padding attend. A GPU gathers them in float32, once
for every row that reads them and of unlike rows together, for two blocks at a time; fitted to three peaks."""
_CACHED_WIDTHS = 7
"""Likewise while attention reads a cache: residual, embedding, norm, q, k, v."""
_SCORED_ROWS = 1024
"""Positions whose logits exist at a time on a GPU (`evals.continuations`)."""
_PROMPT_CHUNK_TOKENS = 512
"""Positions of a prompt that are read at a time (`inference.causal_model`)."""
_CACHE_SLACK_TOKENS = 256
"""Room of a windowed layer's cache beyond its window (`inference.kv_cache`)."""
_RECOMPUTED_SHARE: dict[Dtype, float] = {"float32": 1.25, "bfloat16": 6.0}
"""With activation checkpointing, what a block holds while it is computed again and gone back through, over what a block
keeps that is not: without, the blocks behind it are free by then. A GPU is sent several blocks ahead."""
_KEPT_WIDTHS: dict[Dtype, tuple[float, float]] = {"float32": (22, 5), "bfloat16": (13, 5)}
"""Widths that a block keeps, and those that go with the share of key/value heads (`_block_bytes_per_token`)."""
_CACHE_COPIES: dict[Dtype, int] = {"float32": 1, "bfloat16": 3}
"""Caches that exist while one grows: on a GPU the step before still reads its own."""


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Bytes of a training step: what stays whatever the micro-batch, and what each row of it adds."""

    weights: int
    gradients: int
    optimizer_state: int
    per_row: int
    logits_at_most: int | None
    """None: no less than all."""
    logits_per_row: int
    dtype: Dtype

    def peak(self, rows: int, *, accumulates: bool) -> int:
        """Return the peak with micro-batches of `rows` rows, several of them in a step (`accumulates`) or one.

        That is in the backward pass, or in the update: new weights and half of the new state stand beside the old.
        """
        kept = self.weights + self.gradients + self.optimizer_state
        backward = rows * self.per_row + min(self.logits_at_most or sys.maxsize, rows * self.logits_per_row)
        backward += self.gradients if accumulates else 0
        if self.dtype == "bfloat16":  # a GPU has an update under way while the next step goes forth and back
            return process_peak(kept + backward + self.weights + self.optimizer_state, self.dtype)
        update = self.weights + self.optimizer_state // 2
        return process_peak(kept + max(backward, update), self.dtype)


def process_peak(arrays: int, dtype: Dtype) -> int:
    """Return the peak that is measured where arrays take so much."""
    return PROCESS_BYTES[dtype] + round(HEAP_SLACK[dtype] * arrays)


def training_memory(
    config: GPTConfig, *, sequence_len: int, dtype: Dtype, activation_checkpointing: bool = False
) -> TrainingMemory:
    """Return the memory of a training step on rows of `sequence_len` tokens.

    Weights are fp32, with a second copy in the compute type where that is bf16; gradients are fp32, and there twice
    while a micro-batch's are added to the sum; Muon keeps one fp32 value per weight, AdamW two.
    """
    parameters = config.num_parameters()
    copy = VALUE_BYTES[dtype] if dtype == "bfloat16" else 0
    block = _block_bytes_per_token(config, dtype)
    if activation_checkpointing:
        inputs = config.n_layer * config.n_embd * VALUE_BYTES[dtype]
        per_token = round(_RECOMPUTED_SHARE[dtype] * block) + inputs
    else:
        per_token = config.n_layer * block
    if dtype == "float32":
        per_token += _CPU_ATTENTION_VALUES * config.n_head * 4
    return TrainingMemory(
        weights=parameters * (4 + copy),
        gradients=parameters * 4,
        optimizer_state=optimizer_state_bytes(config),
        per_row=sequence_len * (per_token + 4 * config.n_embd * 4),  # embedding, x0, final norm and its gradient
        logits_at_most=2 * 4 * LOGIT_VALUES if dtype == "float32" else None,
        logits_per_row=2 * VALUE_BYTES[dtype] * sequence_len * config.padded_vocab_size,
        dtype=dtype,
    )


def _block_bytes_per_token(config: GPTConfig, dtype: Dtype) -> int:
    """Return what a block keeps for its backward pass, per token.

    In units of the width: residual mix 2, norm 1, q before and after rotation and norm 3, k and v likewise 5 (times the
    share of key/value heads), attention's output 1, its projection 1, norm 1, the MLP's hidden before and after relu
    and square 12, its projection 1. Attention's weights are computed again, or never written (a GPU's fused form). A
    GPU's kernels keep less: of the MLP only the squares, no relu; of queries and keys only what attention reads.
    """
    kv_share = config.n_kv_head / config.n_head
    fixed, shared = _KEPT_WIDTHS[dtype]
    return round(config.n_embd * (fixed + shared * kv_share) * VALUE_BYTES[dtype])


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


def scoring_bytes(config: GPTConfig, *, tokens: int, gathers: bool = False, dtype: Dtype) -> int:
    """Return the peak of a forward pass on `tokens` tokens, which are whole rows or gathered (`model.ragged`)."""
    attention = _CPU_SCORING_VALUES * config.n_head * 4 if dtype == "float32" else 0
    widths = _FORWARD_WIDTHS + (_GATHERED_WIDTHS[dtype] if gathers else 0)
    forward = tokens * round(widths * config.n_embd * VALUE_BYTES[dtype] + attention)
    at_once = LOGIT_VALUES if dtype == "float32" else _SCORED_ROWS * config.padded_vocab_size
    logits = 3 * 4 * min(at_once, tokens * config.padded_vocab_size)
    return process_peak(_inference_weights(config, dtype) + forward + logits, dtype)


def decoding_bytes(config: GPTConfig, *, rows: int, tokens: int, dtype: Dtype) -> int:
    """Return the peak of generating `rows` rows at once, up to `tokens` tokens each, prompts included.

    That is while the last part of the longest prompts is read: in attention, whose scores stand there twice (on a GPU
    also those of the layer before), or in the MLP.
    """
    positions = sum(min(window + _CACHE_SLACK_TOKENS, tokens) for window in config.windows)
    cache = _CACHE_COPIES[dtype] * rows * positions * _cache_bytes_per_position(config, dtype)
    chunk = min(_PROMPT_CHUNK_TOKENS, tokens)
    widths = rows * chunk * config.n_embd * VALUE_BYTES[dtype]
    copies = 2 if dtype == "float32" else 4
    scores = copies * rows * config.n_head * chunk * tokens * VALUE_BYTES[dtype]
    forward = max(round(_FORWARD_WIDTHS * widths), _CACHED_WIDTHS * widths + scores)
    logits = 2 * 4 * rows * config.padded_vocab_size
    return process_peak(_inference_weights(config, dtype) + cache + forward + logits, dtype)


def _inference_weights(config: GPTConfig, dtype: Dtype) -> int:
    """Return the weights; where they are cast, what they are cast from is there until it is done."""
    return config.num_parameters() * (4 if dtype == "float32" else 4 + VALUE_BYTES[dtype])


def _cache_bytes_per_position(config: GPTConfig, dtype: Dtype) -> int:
    """Return the keys and values of one position in one layer."""
    return 2 * config.n_kv_head * config.head_dim * VALUE_BYTES[dtype]


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
    fitting = (rows for rows in divisors if memory.peak(rows, accumulates=rows < rows_per_step) <= limit_bytes)
    return next(fitting, 0)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
