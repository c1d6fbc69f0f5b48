"""Tokens, FLOPs, memory, disk and time of each stage, before anything starts. Estimates, and labelled so.

FLOPs of training are exact by the formula of `GPTConfig.flops_per_token`; evaluation counts a third of that (forward
only). What depends on data that is not read yet (examples of a task, their lengths) comes from `examples`, time from
`rates`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from nanochat.data.sources import SourceSpec
from nanochat.inference.batch_sizes import GENERATED_ROWS
from nanochat.model.config import GPTConfig
from nanochat.plan.derive.scaling import steps_for_tokens
from nanochat.plan.estimate import dataset_sizes, memory
from nanochat.plan.estimate.device_rates import (
    RATES,
    STARTUP_SECONDS,
    TOKENIZER_CHARS_PER_SECOND,
    DeviceClass,
    decode_seconds,
)
from nanochat.plan.estimate.memory import Dtype
from nanochat.plan.specs import (
    BaseEvalSpec,
    BpbSuiteSpec,
    ChatEvalSpec,
    ExecutionSpec,
    PretrainSpec,
    SftSpec,
    TokenizerSpec,
)

GPU_AUTO_ROWS = 16
"""Rows per forward pass that `micro_batch_size: auto` is shown with on a GPU; how many fit is known only there."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Size and cost of a stage or a run; None where the plan cannot know."""

    parameters: int | None = None
    tokens: int | None = None
    """Tokens trained on (tokenizer: none; evaluations: tokens read or generated)."""
    flops: float | None = None
    peak_memory_bytes: int | None = None
    """Of each process."""
    disk_bytes: int | None = None
    """At its largest: outputs, kept checkpoints and the one being written."""
    kept_disk_bytes: int | None = None
    """Of that, what stays when the stage is done; None for all of it."""
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a stage is executed, on what, and with which model."""

    execution: ExecutionSpec
    config: GPTConfig | None
    """None for a stage without a model."""
    device: DeviceClass

    @property
    def dtype(self) -> Dtype:
        """The type that is computed in."""
        return dtype_of(self.execution, self.device)

    @property
    def model(self) -> GPTConfig:
        """The model of a stage that has one."""
        assert self.config is not None, "a stage that trains or evaluates a model has one"
        return self.config


def total(estimates: list[Estimate]) -> Estimate:
    """Return the sum over stages, in order; None counts as nothing, unless all are.

    Parameters and peak memory are the largest. Disk is what is used at once: what earlier stages leave, and the largest
    of the present one.
    """

    def known(name: str) -> list[float]:
        return [value for one in estimates if (value := getattr(one, name)) is not None]

    def whole(values: list[float]) -> int | None:
        return int(sum(values)) if values else None

    return Estimate(
        parameters=whole(known("parameters")[:1]),
        tokens=whole(known("tokens")),
        flops=math.fsum(known("flops")) if known("flops") else None,
        peak_memory_bytes=whole([max(known("peak_memory_bytes"), default=0)]) or None,
        disk_bytes=_disk_at_once(estimates),
        seconds=math.fsum(known("seconds")) if known("seconds") else None,
    )


def _disk_at_once(estimates: list[Estimate]) -> int | None:
    left, most = 0, None
    for one in estimates:
        if one.disk_bytes is not None:
            most = max(most or 0, left + one.disk_bytes)
            left += one.disk_bytes if one.kept_disk_bytes is None else one.kept_disk_bytes
    return most


def dtype_of(execution: ExecutionSpec, device: DeviceClass) -> Dtype:
    """Return what `run.dtype` computes in on a class of device."""
    if execution.dtype == "auto":
        return "float32" if device == "cpu" else "bfloat16"
    return execution.dtype


def estimate_tokenizer(spec: TokenizerSpec, _setting: Setting) -> Estimate:
    """Return the estimate of the tokenizer stage, without looking at its source."""
    return estimate_tokenizer_training(spec, chars=dataset_sizes.source_chars(spec.source))


def estimate_tokenizer_training(spec: TokenizerSpec, *, chars: int | None) -> Estimate:
    """Return the estimate of a tokenizer stage whose source has `chars` characters; None if that is not known."""
    chars = min(spec.max_chars, chars or spec.max_chars)
    return Estimate(
        peak_memory_bytes=memory.tokenizer_peak(chars, spec.vocab_size) + _reader_bytes([spec.source], "float32"),
        disk_bytes=24 * spec.vocab_size,
        seconds=1 + chars / TOKENIZER_CHARS_PER_SECOND,
    )


def _reader_bytes(sources: Iterable[SourceSpec], dtype: Dtype) -> int:
    """Return what reading the sources takes of a process that is measured as a whole."""
    names = (name for source in sources for name in (source.path or ()))
    reads_parquet = any(source.uri for source in sources) or any(name.endswith(".parquet") for name in names)
    return memory.PARQUET_BYTES if reads_parquet and dtype == "float32" else 0


def estimate_pretrain(spec: PretrainSpec, setting: Setting) -> Estimate:
    """Return the estimate of the pretrain stage."""
    return _estimate_training(spec, setting, setting.model.sequence_len, spec.steps * spec.tokens_per_step)


def estimate_sft(spec: SftSpec, setting: Setting) -> Estimate:
    """Return the estimate of the sft stage."""
    return _estimate_training(spec, setting, spec.sequence_len or setting.model.sequence_len, _sft_tokens(spec))


def _estimate_training(
    spec: PretrainSpec | SftSpec, setting: Setting, sequence_len: int, tokens: int | None
) -> Estimate:
    config, execution, dtype, device = setting.model, setting.execution, setting.dtype, setting.device
    tokens_per_step = spec.tokens_per_step
    step = memory.training_memory(
        config,
        sequence_len=sequence_len,
        dtype=dtype,
        activation_checkpointing=execution.activation_checkpointing,
    )
    rows = _planned_micro_batch(setting, tokens_per_step, sequence_len)
    flops = None if tokens is None else float(tokens * config.flops_per_token())
    recomputed = 4 / 3 if execution.activation_checkpointing else 1.0
    rate = RATES[device].flops_per_second * execution.processes
    seconds = None if flops is None else STARTUP_SECONDS[device] + flops * recomputed / rate
    one_save = memory.checkpoint_bytes(config)
    # The newest, the best one, the one being written; then, in its place, as much again in the output.
    saved = execution.checkpoint_keep + 2
    stays = saved if execution.checkpoint_keep_when_done else 1
    return Estimate(
        parameters=config.num_parameters(),
        tokens=tokens,
        flops=flops,
        peak_memory_bytes=step.peak(rows, accumulates=rows * sequence_len < tokens_per_step)
        + _reader_bytes([item.source for item in spec.data], dtype),
        disk_bytes=saved * one_save,
        kept_disk_bytes=stays * one_save,
        seconds=seconds,
    )


def _planned_micro_batch(setting: Setting, tokens_per_step: int, sequence_len: int) -> int:
    """Return a process's rows per forward pass that the estimate assumes."""
    fits = memory.micro_batch_size(
        setting.model,
        setting.execution,
        rows=max(1, tokens_per_step // sequence_len // setting.execution.processes),
        sequence_len=sequence_len,
        dtype=setting.dtype,
        limit_bytes=setting.execution.memory_limit_bytes or sys.maxsize,
        at_most=memory.cpu_micro_batch_limit(sequence_len) if setting.device == "cpu" else GPU_AUTO_ROWS,
    )
    return max(1, fits)


def _sft_tokens(spec: SftSpec) -> int | None:
    """Return the tokens of an SFT run in whole steps, or None if the size of an epoch is not known."""
    steps = spec.last_step
    if steps is None:
        assert spec.epochs is not None, "a horizon is in steps, tokens or epochs"
        epoch = dataset_sizes.sft_mixture_tokens(spec.data)
        steps = None if epoch is None else steps_for_tokens(spec.epochs * epoch, spec.tokens_per_step)
    return None if steps is None else steps * spec.tokens_per_step


def estimate_base_eval(spec: BaseEvalSpec, setting: Setting) -> Estimate:
    """Return the estimate of the base_eval stage."""
    config, dtype, device = setting.model, setting.dtype, setting.device
    tokens = 0
    for suite in spec.suites.values():
        tokens += suite.tokens if isinstance(suite, BpbSuiteSpec) else dataset_sizes.base_suite_tokens(suite)
    decoded = decode_seconds(config, len(spec.samples) * spec.sample_tokens, 1, dtype, device)
    peak = memory.base_eval_peak(spec, config, dtype, on_cpu=device == "cpu") + _reader_bytes(
        [suite.source for suite in spec.suites.values()], dtype
    )
    return _estimate_eval(config, tokens, decoded, peak, dtype, device)


def estimate_chat_eval(spec: ChatEvalSpec, setting: Setting) -> Estimate:
    """Return the estimate of the chat_eval stage."""
    config, dtype, device = setting.model, setting.dtype, setting.device
    tokens, decoded = 0, 0.0
    for suite in spec.suites.values():
        prompt, completion = dataset_sizes.chat_suite_tokens(suite)
        tokens += prompt + completion
        decoded += decode_seconds(config, completion, GENERATED_ROWS, dtype, device)
    peak = memory.chat_eval_peak(spec, config, dtype, on_cpu=device == "cpu")
    peak += _reader_bytes([suite.source for suite in spec.suites.values()], dtype)
    return _estimate_eval(config, tokens, decoded, peak, dtype, device)


def _estimate_eval(
    config: GPTConfig, tokens: int, decoding: float, peak: int, dtype: Dtype, device: DeviceClass
) -> Estimate:
    flops = tokens * config.flops_per_token() / 3
    return Estimate(
        parameters=config.num_parameters(),
        tokens=tokens,
        flops=flops,
        peak_memory_bytes=peak,
        disk_bytes=8 * tokens,
        seconds=STARTUP_SECONDS[device] + flops / RATES[device].flops_per_second + decoding,
    )
