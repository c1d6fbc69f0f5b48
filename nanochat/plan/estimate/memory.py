"""Estimates the peak memory of each stage in bytes, from the shapes of its arrays and a few fitted constants.

Training counts weights, gradients, optimizer state, the activations kept for the backward pass, and one chunk of
logits. On a CPU the size of the whole process is measured, so the process and the slack of its heap are added. On a GPU
only arrays count. float32 stands for a CPU and bfloat16 for a GPU, as `run.dtype: auto` chooses them. For training,
Metal has constants of its own. `tests/plan` compares the formulas with measured peaks, which
`tests/benchmarks/memory.py` measures.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from nanochat.inference import batch_sizes
from nanochat.model.config import GPTConfig
from nanochat.optim.groups import MuonGroup, OptimizerConfig, build_groups
from nanochat.plan.estimate.dataset_sizes import longest_chat_tokens
from nanochat.plan.specs import (
    AnyChatSuiteSpec,
    BaseEvalSpec,
    BaseSuiteSpec,
    BpbSuiteSpec,
    ChatEvalSpec,
    ExecutionSpec,
    RlSpec,
)

Dtype = Literal["float32", "bfloat16"]

VALUE_BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2}
PROCESS_BYTES: dict[Dtype, int] = {"float32": 100 * 2**20, "bfloat16": 96 * 2**20}
"""CPU: Python with numpy, MLX, BLAS and SentencePiece, and the loader's buffers. GPU: workspaces of kernels."""
PARQUET_BYTES = 48 * 2**20
"""Added for a process that reads parquet: pyarrow and a row group."""
HEAP_SLACK: dict[Dtype, float] = {"float32": 1.25, "bfloat16": 1.1}
"""Measured memory relative to the arrays counted. A CPU process keeps freed pages in pieces that do not fit the next
request. A GPU frees arrays only when the work that was queued on them is done."""
LOGIT_VALUES = 2**18
"""Logits that exist at a time on a CPU, and as many gradients. A GPU receives all chunks of a step at once."""
CPU_MICRO_BATCH_TOKENS = 16_384
"""`micro_batch_size: auto` on a CPU takes at most this many tokens: more are no faster and do not fit the caches."""
_CPU_BACKWARD_WIDTHS = 12
"""On a CPU: widths per token of the arrays that exist while the gradients of one block are computed (fitted)."""
_CPU_SCORING_VALUES = 64 * 3
"""On a CPU: queries of an attention block, times the copies of its weights that exist in a forward pass."""
_FORWARD_WIDTHS = 17.5
"""Peak of a forward pass in widths per token: residual, embedding, norm; the MLP's hidden layer before and after relu
and square."""
_GATHERED_WIDTHS: dict[Dtype, int] = {"float32": 6, "bfloat16": 70}
"""Widths per token that queries, keys and values add in scoring, where rows have no padding (`model.ragged`). A GPU
copies them in float32 once for each row that reads them, padded, for two blocks at once. Fitted to three peaks."""
_CACHED_WIDTHS = 7
"""Widths per token while attention reads a cache: residual, embedding, norm, q, k, v."""
_RECOMPUTED_SHARE: dict[Dtype, float] = {"float32": 2.3, "bfloat16": 6.0}
"""Peak memory of one recomputed block, relative to what it would have stored without checkpointing (fitted). A GPU
works on several blocks at a time."""
_KEPT_WIDTHS: dict[Dtype, tuple[float, float]] = {"float32": (8.5, 3), "bfloat16": (9, 3)}
"""Widths that a block keeps, and those proportional to the share of key/value heads (`_block_bytes_per_token`)."""
_UNFINISHED_BYTES = 2**30
"""Most that a GPU holds of work that was submitted before: the previous step's update, and temporary arrays."""
_LOGITS_SHARE = 0.7
"""Share of a pass's logits and their gradients that exist at a time on a GPU (fitted)."""
_CPU_SCORED_QUERIES = 64
"""Queries whose scores exist at a time on a CPU (`model.cpu.attention`)."""
_CACHE_COPIES: dict[Dtype, int] = {"float32": 1, "bfloat16": 3}
"""Copies of the cache while it grows: on a GPU the previous step still reads its own."""
_METAL_WIDTHS = (17.0, 4.0)
"""The same as `_KEPT_WIDTHS` on Metal. Of the MLP's hidden layer, blocks keep only the square. Fitted to peaks."""
_METAL_RECOMPUTED_SHARE = 2.0
"""The same as `_RECOMPUTED_SHARE` on Metal."""
_METAL_INPUT_WIDTHS = 4
"""Widths that a recomputed block keeps on Metal: its input, and what its residual mix needs."""
_METAL_LOGITS = 2**24
"""Logits of a chunk on Metal (`model.loss`)."""
_METAL_CHUNKS = 8
"""Arrays of the size of a chunk, in float32, that exist at a time: MLX submits work before the last one is done."""
_METAL_SLACK = 1.03
_SAMPLE_PROMPT_TOKENS = 64
_TEXT_BYTES_PER_CHAR, _INDEX_BYTES_PER_CHAR, _CHARS_OF_NEW_WORDS, _BYTES_PER_PIECE = 6, 9, 12_000_000, 1200
"""Of training a tokenizer, fitted to nine peaks."""


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Bytes of a training step: what does not depend on the micro-batch, and what each of its rows adds."""

    weights: int
    gradients: int
    optimizer_state: int
    per_row: int
    logits_at_most: int | None
    """None if the logits of all rows exist at once."""
    logits_per_row: int
    dtype: Dtype
    on_metal: bool = False

    def peak(self, rows: int, *, accumulates: bool) -> int:
        """Return the peak with micro-batches of `rows` rows; a step has several of them if it `accumulates`.

        The peak is in the backward pass or in the update, when new weights and half of the new state exist beside the
        old ones.
        """
        if self.on_metal:
            return self._metal_peak(rows, accumulates)
        if self.dtype == "bfloat16":
            return self._gpu_peak(rows, accumulates=accumulates)
        kept = self.weights + self.gradients + self.optimizer_state
        backward = rows * self.per_row + min(self.logits_at_most or sys.maxsize, rows * self.logits_per_row)
        backward += self.gradients if accumulates else 0
        update = self.weights + self.optimizer_state // 2
        return process_peak(kept + max(backward, update), self.dtype)

    def _metal_peak(self, rows: int, accumulates: bool) -> int:
        """Return the peak on a Mac, where gradients have the compute dtype until several micro-batches are added.

        The update makes new weights and a new state before the device may forget the old ones.
        """
        masters = self.gradients  # float32, as the weights
        own = masters * VALUE_BYTES[self.dtype] // 4
        kept = self.weights + own + (masters if accumulates else 0) + self.optimizer_state
        backward = rows * self.per_row + min(self.logits_at_most or sys.maxsize, rows * self.logits_per_row)
        return round(_METAL_SLACK * (kept + max(backward, masters + self.optimizer_state)))

    def _gpu_peak(self, rows: int, *, accumulates: bool) -> int:
        """Return the peak on a GPU, where gradients are bfloat16, and float32 sums of them exist if it accumulates."""
        kept = self.weights + self.gradients // 2 + self.optimizer_state + (self.gradients if accumulates else 0)
        backward = rows * self.per_row + round(_LOGITS_SHARE * rows * self.logits_per_row)
        unfinished = min(_UNFINISHED_BYTES, 2 * (self.weights + self.optimizer_state))
        return PROCESS_BYTES[self.dtype] + kept + backward + unfinished


def process_peak(arrays: int, dtype: Dtype) -> int:
    """Return the peak that is measured if all arrays together have `arrays` bytes."""
    return PROCESS_BYTES[dtype] + round(HEAP_SLACK[dtype] * arrays)


def training_memory(
    config: GPTConfig,
    *,
    sequence_len: int,
    dtype: Dtype,
    activation_checkpointing: bool = False,
    on_metal: bool = False,
) -> TrainingMemory:
    """Return the memory of a training step on rows of `sequence_len` tokens.

    Weights are fp32, with a bf16 copy if that is the compute type. Sums of gradients are fp32; on a CPU all gradients
    are, and exist twice while those of a micro-batch are added to the sum. Muon keeps one fp32 value per weight, and
    AdamW two.
    """
    parameters = config.num_parameters()
    copy = VALUE_BYTES[dtype] if dtype == "bfloat16" else 0
    block = _block_bytes_per_token(config, dtype, _METAL_WIDTHS if on_metal else _KEPT_WIDTHS[dtype])
    if activation_checkpointing:
        inputs = config.n_layer * config.n_embd * VALUE_BYTES[dtype] * (_METAL_INPUT_WIDTHS if on_metal else 1)
        per_token = round((_METAL_RECOMPUTED_SHARE if on_metal else _RECOMPUTED_SHARE[dtype]) * block) + inputs
    else:
        per_token = config.n_layer * block
    if on_metal:
        logits_at_most: int | None = _METAL_CHUNKS * 4 * _METAL_LOGITS
    else:
        logits_at_most = 2 * 4 * LOGIT_VALUES if dtype == "float32" else None
    if dtype == "float32" and not on_metal:
        per_token += _CPU_BACKWARD_WIDTHS * config.n_embd * 4
    return TrainingMemory(
        weights=parameters * (4 + copy),
        gradients=parameters * 4,
        optimizer_state=optimizer_state_bytes(config),
        per_row=sequence_len * (per_token + 4 * config.n_embd * 4),  # embedding, x0, final norm and its gradient
        logits_at_most=logits_at_most,
        logits_per_row=(_METAL_CHUNKS * 4 if on_metal else 2 * VALUE_BYTES[dtype])
        * sequence_len
        * config.padded_vocab_size,
        dtype=dtype,
        on_metal=on_metal,
    )


def _block_bytes_per_token(config: GPTConfig, dtype: Dtype, widths: tuple[float, float]) -> int:
    """Return the bytes per token that a block keeps for its backward pass.

    In units of the width. A CPU (`model.cpu.training`): residual 1, norm 1, q before and after rotation and norm 2,
    attention's output 1, norm 1, the MLP's hidden layer 4, and k, v and value embeddings 3.5 times the share of
    key/value heads; some of it shares memory, so the fitted numbers are smaller. CUDA's kernels: residual 1, norms 2,
    queries, keys and values 3 (in half of the layers 5), attention's output 1 and the squares of the MLP 4. Attention
    weights are recomputed, or never stored.
    """
    kv_share = config.n_kv_head / config.n_head
    fixed, shared = widths
    return round(config.n_embd * (fixed + shared * kv_share) * VALUE_BYTES[dtype])


def optimizer_state_bytes(config: GPTConfig) -> int:
    """Return the optimizer's state: Muon's momentum and its second moment per row or column, AdamW's two moments."""
    shapes = config.parameter_shapes()
    values = 0
    for group in build_groups(config, OptimizerConfig(), tokens_per_step=1):
        is_muon = isinstance(group, MuonGroup)
        for name in group.names:
            size = math.prod(shapes[name])
            values += size + max(shapes[name]) if is_muon else 2 * size
    return 4 * values


def checkpoint_bytes(config: GPTConfig) -> int:
    """Return the size of one training checkpoint: fp32 weights and optimizer state."""
    return 4 * config.num_parameters() + optimizer_state_bytes(config)


def scoring_bytes(config: GPTConfig, *, tokens: int, gathers: bool = False, dtype: Dtype) -> int:
    """Return the peak of a forward pass on `tokens` tokens, in whole rows or without padding (`gathers`)."""
    attention = _CPU_SCORING_VALUES * config.n_head * 4 if dtype == "float32" else 0
    widths = _FORWARD_WIDTHS + (_GATHERED_WIDTHS[dtype] if gathers else 0)
    forward = tokens * round(widths * config.n_embd * VALUE_BYTES[dtype] + attention)
    at_once = LOGIT_VALUES if dtype == "float32" else batch_sizes.GPU_SCORED_ROWS * config.padded_vocab_size
    logits = 3 * 4 * min(at_once, tokens * config.padded_vocab_size)
    return process_peak(_inference_weights(config, dtype) + forward + logits, dtype)


def decoding_bytes(config: GPTConfig, *, rows: int, tokens: int, dtype: Dtype) -> int:
    """Return the peak of generating `rows` rows at once, up to `tokens` tokens each, prompts included.

    Prompts are read a few at a time. The peak is reached while the last chunk of the longest prompts is read: in
    attention, whose scores exist twice (on a GPU also those of the previous layer), or in the MLP. If all prompts are
    read together, the buffers for decoding exist only afterwards.
    """
    rows_read = max(1, min(rows, batch_sizes.PROMPT_TOKENS // tokens))
    position = _CACHE_COPIES[dtype] * _cache_bytes_per_position(config, dtype)
    prompts = position * rows_read * tokens * config.n_layer
    buffers = position * rows * sum(batch_sizes.buffer_size(window, tokens) for window in config.windows)
    chunk = min(batch_sizes.PROMPT_CHUNK_TOKENS, tokens)
    widths = rows_read * chunk * config.n_embd * VALUE_BYTES[dtype]
    queries, copies = (min(chunk, _CPU_SCORED_QUERIES), 2) if dtype == "float32" else (chunk, 4)
    scores = copies * rows_read * config.n_head * queries * tokens * VALUE_BYTES[dtype]
    reading = max(round(_FORWARD_WIDTHS * widths), _CACHED_WIDTHS * widths + scores)
    held = max(reading, buffers) if rows_read == rows else reading + buffers
    logits = 2 * 4 * rows * config.padded_vocab_size
    return process_peak(_inference_weights(config, dtype) + prompts + held + logits, dtype)


def _inference_weights(config: GPTConfig, dtype: Dtype) -> int:
    """Return the bytes of the weights, including those that a cast starts from."""
    return config.num_parameters() * (4 if dtype == "float32" else 4 + VALUE_BYTES[dtype])


def _cache_bytes_per_position(config: GPTConfig, dtype: Dtype) -> int:
    """Return the bytes of the keys and values of one position in one layer."""
    return 2 * config.n_kv_head * config.head_dim * VALUE_BYTES[dtype]


def base_eval_peak(spec: BaseEvalSpec, config: GPTConfig, dtype: Dtype, *, on_cpu: bool) -> int:
    """Return the peak of a base_eval stage: that of its largest suite, or of its samples."""
    scored = _scored_tokens(config, on_cpu)
    peaks = [_base_suite_peak(suite, config, dtype, scored) for suite in spec.suites.values()]
    if spec.samples:
        length = min(config.sequence_len, _SAMPLE_PROMPT_TOKENS + spec.sample_tokens)
        peaks.append(decoding_bytes(config, rows=len(spec.samples), tokens=length, dtype=dtype))
    return max(peaks)


def chat_eval_peak(spec: ChatEvalSpec, config: GPTConfig, dtype: Dtype, *, on_cpu: bool) -> int:
    """Return the peak of a chat_eval stage: that of its largest suite."""
    scored = _scored_tokens(config, on_cpu)
    return max(_chat_suite_peak(suite, config, dtype, scored) for suite in spec.suites.values())


def suites_peak(
    suites: Mapping[str, BaseSuiteSpec],
    chat_suites: Mapping[str, AnyChatSuiteSpec],
    config: GPTConfig,
    dtype: Dtype,
    *,
    on_cpu: bool,
) -> int:
    """Return the peak of the largest of some suites, 0 if there are none."""
    scored = _scored_tokens(config, on_cpu)
    peaks = [_base_suite_peak(suite, config, dtype, scored) for suite in suites.values()]
    peaks += [_chat_suite_peak(suite, config, dtype, scored) for suite in chat_suites.values()]
    return max(peaks, default=0)


def _scored_tokens(config: GPTConfig, on_cpu: bool) -> int:
    return max(batch_sizes.CPU_SCORED_TOKENS if on_cpu else batch_sizes.GPU_SCORED_TOKENS, config.sequence_len)


def _base_suite_peak(suite: BaseSuiteSpec, config: GPTConfig, dtype: Dtype, scored_tokens: int) -> int:
    if isinstance(suite, BpbSuiteSpec):
        return scoring_bytes(config, tokens=max(batch_sizes.BPB_TOKENS, config.sequence_len), dtype=dtype)
    return scoring_bytes(config, tokens=scored_tokens, gathers=True, dtype=dtype)


def _chat_suite_peak(suite: AnyChatSuiteSpec, config: GPTConfig, dtype: Dtype, scored_tokens: int) -> int:
    length = longest_chat_tokens(suite)
    if length is None:
        return scoring_bytes(config, tokens=scored_tokens, dtype=dtype)
    rows = min(batch_sizes.GENERATED_ROWS, (suite.max_problems or batch_sizes.GENERATED_ROWS) * suite.num_samples)
    return decoding_bytes(config, rows=rows, tokens=min(config.sequence_len, length), dtype=dtype)


def rollout_rows(spec: RlSpec, processes: int, *, on_cpu: bool) -> int:
    """Return how many answers a process samples at a time: those of a step, as far as the device works on them."""
    most = batch_sizes.CPU_ROLLOUT_ROWS if on_cpu else batch_sizes.GPU_ROLLOUT_ROWS
    return min(most, max(1, spec.answers_per_step // processes))


def tokenizer_peak(chars: int, vocab_size: int) -> int:
    """Return the peak of training a tokenizer: SentencePiece keeps the text and indexes its words and their pairs.

    New words become rarer further into a text, so the index grows fastest at the start.
    """
    indexes = _INDEX_BYTES_PER_CHAR * min(chars, _CHARS_OF_NEW_WORDS) + _BYTES_PER_PIECE * vocab_size
    return PROCESS_BYTES["float32"] + _TEXT_BYTES_PER_CHAR * chars + indexes


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
    return max(1, CPU_MICRO_BATCH_TOKENS // sequence_len)
