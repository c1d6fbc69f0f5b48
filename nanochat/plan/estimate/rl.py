"""Estimates the rl stage: sampling answers, and the updates with them."""

from __future__ import annotations

from nanochat.plan.estimate import dataset_sizes
from nanochat.plan.estimate.devices import RATES, STARTUP_SECONDS, decode_seconds
from nanochat.plan.estimate.estimate import Estimate, Setting, reader_bytes
from nanochat.plan.estimate.memory import evaluation, sizes, training
from nanochat.plan.estimate.training import planned_micro_batch, saved_bytes
from nanochat.plan.specs.training import RlSpec
from nanochat.tasks.table import TASKS


def estimate_rl(spec: RlSpec, setting: Setting) -> Estimate:
    """Return the estimate of the rl stage. Tokens are those that are trained on, prompts included."""
    config, dtype, device, execution = setting.model, setting.dtype, setting.device, setting.execution
    prompt, answer = _tokens(spec)
    length = min(config.sequence_len, prompt + spec.max_tokens)
    # The stage shares memory as for rows of the whole context, and puts more rows into a pass if they are shorter.
    context = config.sequence_len
    rows = planned_micro_batch(setting, spec.answers_per_step * context, context)
    step = training.training_memory(
        config,
        sequence_len=context,
        dtype=dtype,
        activation_checkpointing=execution.activation_checkpointing,
        on_metal=device == "metal",
    )
    copies = (1 if spec.kl else 0) * 4 * config.num_parameters()
    sampled = evaluation.rollout_rows(spec, execution.processes, on_cpu=device == "cpu")
    updating = step.peak(rows, accumulates=rows * execution.processes < spec.answers_per_step) + copies
    sampling = evaluation.decoding_bytes(config, rows=sampled, tokens=length, dtype=dtype)
    sampling += sizes.optimizer_state_bytes(config) + config.num_parameters() + copies
    steps = spec.steps if spec.steps is not None else _steps_of_epochs(spec)
    saved, stays = saved_bytes(setting)
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
    """Return about how many tokens a prompt and an answer have: those of the longest task."""
    usual = max(TASKS[item.suite.task].example_tokens for item in spec.data.values())
    return max(1, usual // 2), min(spec.max_tokens, usual)


def _steps_of_epochs(spec: RlSpec) -> int | None:
    questions = dataset_sizes.practice_questions(list(spec.data.values()))
    return (
        None
        if questions is None or spec.epochs is None
        else max(1, int(spec.epochs * questions) // spec.prompts_per_step)
    )
