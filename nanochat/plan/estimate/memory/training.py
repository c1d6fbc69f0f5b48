"""Peak memory of training a model or a tokenizer, and the rows of a forward pass that fit into memory."""

from __future__ import annotations

import bisect

from nanochat.model.config import GPTConfig
from nanochat.plan.estimate.memory.cpu import cpu_training
from nanochat.plan.estimate.memory.cuda import cuda_training
from nanochat.plan.estimate.memory.metal import metal_training
from nanochat.plan.estimate.memory.sizes import PROCESS_BYTES, Dtype, TrainingMemory
from nanochat.plan.specs.execution import ExecutionSpec

_CPU_MICRO_BATCH_TOKENS = 16_384
"""`micro_batch_size: auto` on a CPU takes at most this many tokens: more are no faster and do not fit the caches."""
_TEXT_BYTES_PER_CHAR, _INDEX_BYTES_PER_CHAR, _CHARS_OF_NEW_WORDS, _BYTES_PER_PIECE = 6, 9, 12_000_000, 1200
"""Of training a tokenizer, fitted to nine peaks."""


def training_memory(
    config: GPTConfig,
    *,
    sequence_len: int,
    dtype: Dtype,
    activation_checkpointing: bool = False,
    on_metal: bool = False,
) -> TrainingMemory:
    """Return the memory of a training step on rows of `sequence_len` tokens.

    Counted are weights, gradients, optimizer state, the activations kept for the backward pass, and logits. Muon keeps
    one fp32 value per weight, and AdamW two.
    """
    if on_metal:
        return metal_training(config, sequence_len=sequence_len, dtype=dtype, recomputes=activation_checkpointing)
    train = cpu_training if dtype == "float32" else cuda_training
    return train(config, sequence_len=sequence_len, recomputes=activation_checkpointing)


def micro_batch_size(
    config: GPTConfig,
    execution: ExecutionSpec,
    *,
    rows: int,
    sequence_len: int,
    dtype: Dtype,
    limit_bytes: int,
    at_most: int | None = None,
    on_metal: bool = False,
) -> int:
    """Return a process's rows per forward pass: the recipe's number, or what `auto` chooses; 0 if not one row fits.

    `auto` is the largest divisor of `rows`, the process's rows of a step, that fits in memory, and at most `at_most`.
    """
    if execution.micro_batch_size is not None:
        return min(execution.micro_batch_size, rows)
    memory = training_memory(
        config,
        sequence_len=sequence_len,
        dtype=dtype,
        activation_checkpointing=execution.activation_checkpointing,
        on_metal=on_metal,
    )
    divisors = (size for size in range(min(rows, at_most or rows), 0, -1) if rows % size == 0)
    return next((size for size in divisors if memory.peak(size, accumulates=size < rows) <= limit_bytes), 0)


def cpu_micro_batch_limit(sequence_len: int) -> int:
    """Return the most rows that `micro_batch_size: auto` takes on a CPU."""
    return max(1, _CPU_MICRO_BATCH_TOKENS // sequence_len)


def tokenizer_peak(chars: int, vocab_size: int) -> int:
    """Return the peak of training a tokenizer: SentencePiece keeps the text and indexes its words and their pairs.

    New words become rarer further into a text, so the index grows fastest at the start.
    """
    indexes = _INDEX_BYTES_PER_CHAR * min(chars, _CHARS_OF_NEW_WORDS) + _BYTES_PER_PIECE * vocab_size
    return PROCESS_BYTES["float32"] + _TEXT_BYTES_PER_CHAR * chars + indexes


def tokenizer_chars(peak_bytes: int, vocab_size: int) -> int:
    """Return how many characters a tokenizer can be trained on within a peak, in two digits; 0 if it allows none."""
    fits = bisect.bisect_right(range(peak_bytes), peak_bytes, key=lambda chars: tokenizer_peak(chars, vocab_size)) - 1
    digit: int = 10 ** max(0, len(str(fits)) - 2)
    return max(0, fits // digit * digit)
