"""Peak memory of evaluation stages, by what their suites do: read rows, compare options, or generate."""

from __future__ import annotations

from nanochat.model.config import GPTConfig
from nanochat.plan.estimate import dataset_sizes as examples
from nanochat.plan.estimate import memory
from nanochat.plan.estimate.memory import Dtype
from nanochat.plan.specs import BaseEvalSpec, BaseSuiteSpec, BpbSuiteSpec, ChatEvalSpec, ChatSuiteSpec

EVAL_ROWS = 32
"""Rows decoded at a time."""
BPB_TOKENS = 4_096
"""Tokens per forward pass of bits per byte."""
CPU_SCORED_TOKENS, GPU_SCORED_TOKENS = 2_048, 8_192
"""Tokens per forward pass of scoring options or letters."""
_SAMPLE_PROMPT_TOKENS = 64


def base_eval_peak(spec: BaseEvalSpec, config: GPTConfig, dtype: Dtype, *, on_cpu: bool) -> int:
    """Return the peak of a base_eval stage: that of its largest suite, or of its samples."""
    scored = _scored_tokens(config, on_cpu)
    peaks = [_base_suite_peak(suite, config, dtype, scored) for suite in spec.suites.values()]
    if spec.samples:
        length = min(config.sequence_len, _SAMPLE_PROMPT_TOKENS + spec.sample_tokens)
        peaks.append(memory.decoding_bytes(config, rows=len(spec.samples), tokens=length, dtype=dtype))
    return max(peaks)


def chat_eval_peak(spec: ChatEvalSpec, config: GPTConfig, dtype: Dtype, *, on_cpu: bool) -> int:
    """Return the peak of a chat_eval stage: that of its largest suite."""
    scored = _scored_tokens(config, on_cpu)
    return max(_chat_suite_peak(suite, config, dtype, scored) for suite in spec.suites.values())


def _scored_tokens(config: GPTConfig, on_cpu: bool) -> int:
    return max(CPU_SCORED_TOKENS if on_cpu else GPU_SCORED_TOKENS, config.sequence_len)


def _base_suite_peak(suite: BaseSuiteSpec, config: GPTConfig, dtype: Dtype, scored_tokens: int) -> int:
    if isinstance(suite, BpbSuiteSpec):
        return memory.scoring_bytes(config, tokens=max(BPB_TOKENS, config.sequence_len), dtype=dtype)
    return memory.scoring_bytes(config, tokens=scored_tokens, gathers=True, dtype=dtype)


def _chat_suite_peak(suite: ChatSuiteSpec, config: GPTConfig, dtype: Dtype, scored_tokens: int) -> int:
    length = examples.longest_chat_tokens(suite)
    if length is None:
        return memory.scoring_bytes(config, tokens=scored_tokens, dtype=dtype)
    rows = min(EVAL_ROWS, (suite.max_problems or EVAL_ROWS) * suite.num_samples)
    return memory.decoding_bytes(config, rows=rows, tokens=min(config.sequence_len, length), dtype=dtype)
