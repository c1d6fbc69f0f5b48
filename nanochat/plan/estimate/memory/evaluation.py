"""Peak memory of work without gradients: scoring text and options, and generating answers, also those of `rl`."""

from __future__ import annotations

from collections.abc import Mapping

from nanochat.inference import batch_sizes
from nanochat.model.config import GPTConfig
from nanochat.plan.estimate.dataset_sizes import longest_chat_tokens
from nanochat.plan.estimate.memory.sizes import LOGIT_VALUES, VALUE_BYTES, Dtype, process_peak
from nanochat.plan.specs.evaluation import BaseEvalSpec, ChatEvalSpec
from nanochat.plan.specs.suites import AnyChatSuiteSpec, BaseSuiteSpec, BpbSuiteSpec

_CPU_SCORING_VALUES = 64 * 3
"""On a CPU: queries of an attention block, times the copies of its weights that exist in a forward pass."""
_FORWARD_WIDTHS: dict[Dtype, float] = {"float32": 21, "bfloat16": 17.5}
"""Peak of a forward pass in widths per token: residual, embedding, norm; the MLP's hidden layer before and after relu
and square. On a CPU the arrays were counted by MLX at four sizes: 20.7 to 21.7 beside attention and logits."""
_GATHERED_WIDTHS: dict[Dtype, int] = {"float32": 6, "bfloat16": 70}
"""Widths per token that queries, keys and values add in scoring, where rows have no padding (`model.ragged`). A GPU
copies them in float32 once for each row that reads them, padded, for two blocks at once. Fitted to three peaks."""
_CACHED_WIDTHS = 7
"""Widths per token while attention reads a cache: residual, embedding, norm, q, k, v."""
_CPU_SCORED_QUERIES = 64
"""Queries whose scores exist at a time on a CPU (`model.cpu.attention`)."""
_SAMPLE_PROMPT_TOKENS = 64


def scoring_bytes(config: GPTConfig, *, tokens: int, gathers: bool = False, dtype: Dtype) -> int:
    """Return the peak of a forward pass on `tokens` tokens, in whole rows or without padding (`gathers`)."""
    attention = _CPU_SCORING_VALUES * config.n_head * 4 if dtype == "float32" else 0
    widths = _FORWARD_WIDTHS[dtype] + (_GATHERED_WIDTHS[dtype] if gathers else 0)
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
    # The keys and values of a position in a layer.
    position = 2 * config.n_kv_head * config.head_dim * VALUE_BYTES[dtype]
    prompts = position * rows_read * tokens * config.n_layer
    buffers = position * rows * sum(batch_sizes.buffer_size(window, tokens) for window in config.windows)
    chunk = min(batch_sizes.PROMPT_CHUNK_TOKENS, tokens)
    widths = rows_read * chunk * config.n_embd * VALUE_BYTES[dtype]
    queries, copies = (min(chunk, _CPU_SCORED_QUERIES), 2) if dtype == "float32" else (chunk, 4)
    scores = copies * rows_read * config.n_head * queries * tokens * VALUE_BYTES[dtype]
    reading = max(round(_FORWARD_WIDTHS[dtype] * widths), _CACHED_WIDTHS * widths + scores)
    held = max(reading, buffers) if rows_read == rows else reading + buffers
    logits = 2 * 4 * rows * config.padded_vocab_size
    return process_peak(_inference_weights(config, dtype) + prompts + held + logits, dtype)


def _inference_weights(config: GPTConfig, dtype: Dtype) -> int:
    """Return the bytes of the weights, including those that a cast starts from."""
    return config.num_parameters() * (4 if dtype == "float32" else 4 + VALUE_BYTES[dtype])


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
