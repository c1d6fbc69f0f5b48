"""The estimates of the stages that train: the tokenizer, pretraining, fine-tuning on conversations, and `rl`."""

from __future__ import annotations

import sys

from nanochat.inference.batch_sizes import rollout_rows
from nanochat.plan.derive.scaling import steps_for_tokens
from nanochat.plan.estimate import dataset_sizes
from nanochat.plan.estimate.device_classes import RATES, STARTUP_SECONDS, TOKENIZER_CHARS_PER_SECOND, decode_seconds
from nanochat.plan.estimate.estimate import Estimate, Setting, reader_bytes
from nanochat.plan.estimate.memory import evaluation, sizes, training
from nanochat.plan.estimate.suite_costs import monitored_peak, monitoring_seconds
from nanochat.plan.specs.inputs import sources_of
from nanochat.plan.specs.training import PretrainSpec, RlSpec, SftSpec, TokenizerSpec
from nanochat.tasks.table import TASKS

GPU_AUTO_ROWS = 16
"""Rows per forward pass that the plan assumes for `micro_batch_size: auto` on a GPU. The stage measures its memory."""

_BYTES_PER_PIECE = 24
"""Assumed disk space of a piece of the tokenizer."""


def estimate_tokenizer(spec: TokenizerSpec, setting: Setting) -> Estimate:
    """Return the estimate of the tokenizer stage. It reads all that it may if the size of its source is not known."""
    chars = min(spec.max_chars, setting.sizes.training.get(spec.source.name, spec.max_chars))
    return Estimate(
        peak_memory_bytes=training.tokenizer_peak(chars, spec.vocab_size) + reader_bytes([spec.source], "float32"),
        disk_bytes=_BYTES_PER_PIECE * spec.vocab_size,
        seconds=1 + chars / TOKENIZER_CHARS_PER_SECOND,
    )


def estimate_pretrain(spec: PretrainSpec, setting: Setting) -> Estimate:
    """Return the estimate of the pretrain stage."""
    tokens = None if spec.steps is None else spec.steps * spec.tokens_per_step
    return _estimate_training(spec, setting, setting.model.sequence_len, tokens)


def estimate_sft(spec: SftSpec, setting: Setting) -> Estimate:
    """Return the estimate of the sft stage."""
    return _estimate_training(spec, setting, spec.sequence_len or setting.model.sequence_len, _sft_tokens(spec))


def _estimate_training(
    spec: PretrainSpec | SftSpec, setting: Setting, sequence_len: int, tokens: int | None
) -> Estimate:
    config, execution, dtype, device = setting.model, setting.execution, setting.dtype, setting.device
    recomputes = execution.activation_checkpointing
    step = training.training_memory(
        config,
        sequence_len=sequence_len,
        dtype=dtype,
        activation_checkpointing=recomputes,
        on_metal=device == "metal",
    )
    rows = _planned_micro_batch(setting, spec.tokens_per_step, sequence_len)
    peak = step.peak(rows, accumulates=rows * sequence_len < spec.tokens_per_step)
    rate = RATES[device].flops_per_second * execution.processes / (4 / 3 if recomputes else 1.0)
    if spec.minutes is not None:
        tokens = _whole_steps(60 * spec.minutes * rate / config.flops_per_token(), spec.tokens_per_step)
    flops = None if tokens is None else float(tokens * config.flops_per_token())
    training_seconds = None if flops is None else flops / rate
    if spec.minutes is not None:
        training_seconds = 60 * spec.minutes
    suites = None
    if execution.has_suites and tokens is not None:
        suites = monitoring_seconds(setting, steps=tokens // spec.tokens_per_step)
    seconds = None if training_seconds is None else STARTUP_SECONDS[device] + training_seconds + (suites or 0.0)
    peak = monitored_peak(peak, execution, config, dtype, on_cpu=device == "cpu")
    saved, stays = _saved_bytes(setting)
    return Estimate(
        parameters=config.num_parameters(),
        tokens=tokens,
        flops=flops,
        peak_memory_bytes=peak + reader_bytes(sources_of((*spec.inputs, *execution.inputs)), dtype),
        micro_batch_size=rows,
        disk_bytes=saved,
        kept_disk_bytes=stays,
        seconds=seconds,
        suite_seconds=suites,
    )


def _saved_bytes(setting: Setting) -> tuple[int, int]:
    """Return the most disk space that a training stage uses, and how much remains when it is done."""
    checkpoint, execution = sizes.checkpoint_bytes(setting.model), setting.execution
    # The kept checkpoints, the best one, and the one being written. At the end the output needs as much as that one.
    most = execution.checkpoint_keep + 2
    return most * checkpoint, (most if execution.checkpoint_keep_when_done else 1) * checkpoint


def _whole_steps(tokens: float, tokens_per_step: int) -> int:
    """Return the tokens of the steps that are needed for a number of tokens."""
    return steps_for_tokens(tokens, tokens_per_step) * tokens_per_step


def _planned_micro_batch(setting: Setting, tokens_per_step: int, sequence_len: int) -> int:
    """Return a process's rows per forward pass that the estimate assumes."""
    fits = training.micro_batch_size(
        setting.model,
        setting.execution,
        rows=max(1, tokens_per_step // sequence_len // setting.execution.processes),
        sequence_len=sequence_len,
        dtype=setting.dtype,
        limit_bytes=setting.execution.memory_limit_bytes or sys.maxsize,
        at_most=training.cpu_micro_batch_limit(sequence_len) if setting.device == "cpu" else GPU_AUTO_ROWS,
        on_metal=setting.device == "metal",
    )
    return max(1, fits)


def _sft_tokens(spec: SftSpec) -> int | None:
    """Return the tokens of an SFT run in whole steps. None with a horizon in time or in epochs of unknown size."""
    if spec.last_step is not None:
        return spec.last_step * spec.tokens_per_step
    epoch = None if spec.epochs is None else dataset_sizes.sft_mixture_tokens(spec.data)
    return None if spec.epochs is None or epoch is None else _whole_steps(spec.epochs * epoch, spec.tokens_per_step)


def estimate_rl(spec: RlSpec, setting: Setting) -> Estimate:
    """Return the estimate of the rl stage. Tokens are those that are trained on, prompts included."""
    config, dtype, device, execution = setting.model, setting.dtype, setting.device, setting.execution
    prompt, answer = _tokens(spec)
    length = min(config.sequence_len, prompt + spec.max_tokens)
    # The stage shares memory as for rows of the whole context, and puts more rows into a pass if they are shorter.
    context = config.sequence_len
    rows = _planned_micro_batch(setting, spec.answers_per_step * context, context)
    step = training.training_memory(
        config,
        sequence_len=context,
        dtype=dtype,
        activation_checkpointing=execution.activation_checkpointing,
        on_metal=device == "metal",
    )
    copies = (1 if spec.kl else 0) * 4 * config.num_parameters()
    sampled = rollout_rows(spec.answers_per_step, execution.processes, on_cpu=device == "cpu")
    updating = step.peak(rows, accumulates=rows * execution.processes < spec.answers_per_step) + copies
    sampling = evaluation.decoding_bytes(config, rows=sampled, tokens=length, dtype=dtype)
    sampling += sizes.optimizer_state_bytes(config) + config.num_parameters() + copies
    steps = spec.steps if spec.steps is not None else _steps_of_epochs(spec)
    saved, stays = _saved_bytes(setting)
    common = {
        "parameters": config.num_parameters(),
        "peak_memory_bytes": max(updating, sampling) + reader_bytes([item.source for item in spec.inputs], dtype),
        "micro_batch_size": rows,
        "disk_bytes": saved,
        "kept_disk_bytes": stays,
    }
    if steps is None:
        return Estimate(**common)
    tokens = steps * spec.answers_per_step * (prompt + answer)
    passes = spec.updates_per_step * (4 / 3 if spec.updates_per_step > 1 or spec.kl else 1) + 1 / 3
    flops = tokens * config.flops_per_token() * passes
    answers = steps * spec.answers_per_step * answer
    read, decoded = 0, decode_seconds(config, answers // execution.processes, sampled, dtype, device)
    for suite in spec.held_out.values():
        of_prompts, of_answers = dataset_sizes.chat_suite_tokens(suite)
        read += 2 * of_prompts
        decoded += 2 * decode_seconds(config, of_answers, sampled, dtype, device)
    flops += read * config.flops_per_token() / 3
    rate = RATES[device].flops_per_second * execution.processes
    return Estimate(**common, tokens=tokens, flops=flops, seconds=STARTUP_SECONDS[device] + flops / rate + decoded)


def _tokens(spec: RlSpec) -> tuple[int, int]:
    """Return about how many tokens a prompt and an answer have: each half of an example of the longest task."""
    usual = max(TASKS[item.suite.task].example_tokens for item in spec.data.values())
    return max(1, usual // 2), min(spec.max_tokens, max(1, usual // 2))


def _steps_of_epochs(spec: RlSpec) -> int | None:
    questions = dataset_sizes.practice_questions(list(spec.data.values()))
    return (
        None
        if questions is None or spec.epochs is None
        else max(1, int(spec.epochs * questions) // spec.prompts_per_step)
    )
