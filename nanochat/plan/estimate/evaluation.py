"""The estimates of the stages that use a finished model: base_eval, chat_eval and export."""

from __future__ import annotations

from dataclasses import replace

from nanochat.plan.estimate import dataset_sizes
from nanochat.plan.estimate.device_classes import STARTUP_SECONDS, decode_seconds
from nanochat.plan.estimate.estimate import Estimate, Setting, reader_bytes
from nanochat.plan.estimate.memory import evaluation, sizes
from nanochat.plan.estimate.suite_costs import SuiteCost, base_suites_cost, chat_suites_cost
from nanochat.plan.specs.evaluation import BaseEvalSpec, ChatEvalSpec, ExportSpec

_RECORD_BYTES_PER_TOKEN = 8
"""Assumed disk space of the records of a suite."""


def estimate_base_eval(spec: BaseEvalSpec, setting: Setting) -> Estimate:
    """Return the estimate of the base_eval stage."""
    config, dtype, device = setting.model, setting.dtype, setting.device
    cost = base_suites_cost(spec.suites, setting)
    decoded = decode_seconds(config, len(spec.samples) * spec.sample_tokens, 1, dtype, device)
    peak = evaluation.base_eval_peak(spec, config, dtype, on_cpu=device == "cpu")
    peak += reader_bytes([item.source for item in spec.inputs], dtype)
    return _estimate_eval(setting, replace(cost, decoding_seconds=decoded), peak)


def estimate_chat_eval(spec: ChatEvalSpec, setting: Setting) -> Estimate:
    """Return the estimate of the chat_eval stage."""
    config, dtype, device = setting.model, setting.dtype, setting.device
    peak = evaluation.chat_eval_peak(spec, config, dtype, on_cpu=device == "cpu")
    peak += reader_bytes([item.source for item in spec.inputs], dtype)
    return _estimate_eval(setting, chat_suites_cost(spec.suites, config, dtype, device), peak)


def estimate_export(spec: ExportSpec, setting: Setting) -> Estimate:
    """Return the estimate of the export stage, without the time of other programs that run the model."""
    config, device = setting.model, setting.device
    copy = config.num_parameters() * sizes.VALUE_BYTES["float32"]
    tokens = len(spec.prompts) * spec.max_tokens
    for suite in spec.suites.values():
        tokens += dataset_sizes.chat_suite_tokens(suite)[1]
    return Estimate(
        parameters=config.num_parameters(),
        tokens=tokens,
        flops=tokens * config.flops_per_token() / 3,
        peak_memory_bytes=sizes.PROCESS_BYTES["float32"]
        + 3 * copy,  # the model, a renamed copy, and one without padding
        disk_bytes=len(spec.formats) * copy,
        seconds=STARTUP_SECONDS[device] + decode_seconds(config, tokens, 1, "float32", device),
    )


def _estimate_eval(setting: Setting, cost: SuiteCost, peak: int) -> Estimate:
    return Estimate(
        parameters=setting.model.num_parameters(),
        tokens=cost.tokens,
        flops=cost.flops(setting.model),
        peak_memory_bytes=peak,
        disk_bytes=_RECORD_BYTES_PER_TOKEN * cost.tokens,
        seconds=STARTUP_SECONDS[setting.device] + cost.seconds(setting.model, setting.device),
    )
