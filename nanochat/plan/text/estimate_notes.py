"""The sentences below a plan that say what its estimates assume, and how often it reads a small text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nanochat.plan.describe import NOT_REPRODUCIBLE
from nanochat.plan.estimate.dataset_sizes import bpb_suite_tokens, bytes_per_token
from nanochat.plan.estimate.device_classes import RATES, DeviceClass, mac_gpu_bytes
from nanochat.plan.estimate.estimate import Estimate
from nanochat.plan.estimate.memory.training import tokenizer_chars
from nanochat.plan.estimate.training import GPU_AUTO_ROWS
from nanochat.plan.plan import StagePlan
from nanochat.plan.quantities import show_bytes, show_count, show_duration
from nanochat.plan.specs.evaluation import BaseEvalSpec
from nanochat.plan.specs.execution import ExecutionSpec
from nanochat.plan.specs.suites import BpbSuiteSpec
from nanochat.plan.specs.training import PretrainSpec, SftSpec, TokenizerSpec
from nanochat.plan.stages import STAGES
from nanochat.plurals import several

_WORTH_COMPARING_SECONDS = 600
"""A plan shows the time on other devices only if the run takes longer than this."""
MANY_PASSES = 4
"""Up to four passes teach nearly as much as new text of the same size would; what more of them teach decays quickly
(Muennighoff et al. 2023, "Scaling Data-Constrained Language Models")."""
_FEW_TOKENS = 5_000
"""Held-out text with fewer tokens is a few pages. Its bits per byte depend more on these pages than on the model."""


def estimate_notes(
    stages: Sequence[StagePlan], totals: Mapping[DeviceClass, Estimate], execution: ExecutionSpec, device: DeviceClass
) -> list[str]:
    """Return notes on the estimates for the reader. `totals` has an entry for each possible device class."""
    notes = [f"time and memory are estimates for {RATES[device].basis}"]
    if (totals[device].seconds or 0) > _WORTH_COMPARING_SECONDS:
        for name, estimate in totals.items():
            if name != device:
                cost = f"~{show_duration(estimate.seconds)}, {show_bytes(estimate.peak_memory_bytes)} of memory"
                notes.append(f"all stages: {cost} on {RATES[name].basis}")
    trains = any(STAGES[stage.name].trains for stage in stages)
    if trains and execution.micro_batch_size is None:
        gpu = f"on a GPU, memory is shown for at most {GPU_AUTO_ROWS} rows"
        notes.append(f"micro_batch_size auto takes as many rows as fit and help; {gpu}")
    if trains and execution.processes > 1:
        notes.append(
            f"trains on {execution.processes} processes: memory is per process, and time ignores communication"
        )
    notes += [note for stage in stages if (note := _time_note(stage)) is not None]
    unknown = [stage.name for stage in stages if stage.estimate.flops is None and STAGES[stage.name].has_model]
    if unknown:
        notes.append(f"not known before data or weights are read, and not in any total: {', '.join(unknown)}")
    if any(source.uri for stage in stages for source in stage.read_sources):
        notes.append("the disk estimate does not include downloads")
    return notes


def memory_notes(
    stages: Sequence[StagePlan], device: DeviceClass, memory_bytes: int, available_bytes: int
) -> list[str]:
    """Return, for each stage that trains, how many rows fit and the memory they leave, and which others do not fit.

    `available_bytes` is the part of the device's `memory_bytes` that training may use. `run.limits.memory` may allow
    less, or more: it decides the number of rows. The other stages may use all that the check before a run allows.
    """
    allowed = mac_gpu_bytes(memory_bytes) if device == "metal" else memory_bytes
    machine = f"a {'Mac' if device == 'metal' else 'machine'} with {show_bytes(memory_bytes)}"
    notes = []
    for stage in stages:
        rows, peak, given = (
            stage.estimate.micro_batch_size,
            stage.estimate.peak_memory_bytes,
            stage.execution.memory_limit_bytes,
        )
        if peak is None:
            continue
        if rows is None:
            if given is None and peak > allowed:
                has = f"{machine} has {show_bytes(allowed)} for it"
                notes.append(
                    f"{stage.name} does not fit: it needs {show_bytes(peak)}, but {has}; {need_less(stage, allowed)}"
                )
            continue
        limit = min(given or available_bytes, available_bytes)
        is_given = limit == given
        if peak > limit:
            need = f"{several(rows, 'row')} per forward pass {'needs' if rows == 1 else 'need'} {show_bytes(peak)}"
            has = f"{'`run.limits.memory` allows' if is_given else f'{machine} has'} {show_bytes(limit)}"
            notes.append(f"{stage.name} does not fit: {need}, but {has} for it; {_advice(stage, available_bytes)}")
        else:
            whole = f"the {show_bytes(limit)} of `run.limits.memory`" if is_given else show_bytes(limit)
            needs = f"it needs {show_bytes(peak)} of {whole}, which leaves {show_bytes(limit - peak)}"
            notes.append(f"{stage.name} on {machine} takes {several(rows, 'row')} per forward pass: {needs}")
    return notes


def need_less(stage: StagePlan, allowed_bytes: int) -> str:
    """Return the ways to reduce a stage's memory to what is allowed, other than fewer rows per forward pass."""
    kind, spec = STAGES[stage.name], stage.spec
    if isinstance(spec, TokenizerSpec):
        chars = tokenizer_chars(allowed_bytes, spec.vocab_size)
        return "set `tokenizer.max_chars` lower" + (f", to at most {show_count(chars)}" if chars else "")
    if kind.trains and not stage.execution.activation_checkpointing:
        return "set `run.activation_checkpointing: true`, or use a smaller model or a shorter sequence_len"
    return "use a smaller model or a shorter sequence_len"


def _advice(stage: StagePlan, available_bytes: int) -> str:
    execution = stage.execution
    if execution.micro_batch_size is None and (execution.memory_limit_bytes or 0) > available_bytes:
        return f"set `run.limits.memory` to at most {show_bytes(available_bytes)}, or remove it"
    advice = [] if execution.micro_batch_size in (None, 1) else ["lower `run.micro_batch_size`"]
    advice += [] if execution.activation_checkpointing else ["set `run.activation_checkpointing: true`"]
    return ", or ".join([*advice, "use a smaller model or `sequence_len`"])


def _time_note(stage: StagePlan) -> str | None:
    """Return a sentence on the horizon of a stage in minutes, None if it has another horizon."""
    spec, tokens = stage.spec, stage.estimate.tokens
    if not isinstance(spec, PretrainSpec | SftSpec) or spec.minutes is None:
        return None
    steps = "" if tokens is None else f", about {several(tokens // spec.tokens_per_step, 'step')} at this speed"
    return f"{spec.stage} trains for {several(spec.minutes, 'minute')}{steps}; {NOT_REPRODUCIBLE}"


def held_out_notes(stages: Sequence[StagePlan], held_out_chars: Mapping[str, int]) -> list[str]:
    """Return which suites of bits per byte have less held-out text than they may read.

    `held_out_chars` holds the size of that text, as far as it is known.
    """
    notes = []
    for stage in stages:
        if not isinstance(stage.spec, BaseEvalSpec) or stage.model is None:
            continue
        for name, suite in stage.spec.suites.items():
            if not isinstance(suite, BpbSuiteSpec):
                continue
            tokens = bpb_suite_tokens(suite, held_out_chars, stage.model.vocab_size)
            if tokens < suite.tokens:
                advice = "too few to judge a model by; raise `validation.hash_frac`, or hold out more files"
                notes.append(
                    f"{stage.name}.{name} may read {suite.tokens:,} tokens, but all held-out text of "
                    f"{suite.source.name} has about {show_count(tokens)}"
                    + (f": {advice}" if tokens < _FEW_TOKENS else "")
                )
    return notes


def repetition_notes(stages: Sequence[StagePlan], chars: Mapping[str, int]) -> list[str]:
    """Return how often pretraining reads the text of each source that it reads more than once.

    `chars` holds the size of sources, as far as that is known.
    """
    notes = []
    for stage in stages:
        spec, tokens = stage.spec, stage.estimate.tokens
        if not isinstance(spec, PretrainSpec) or tokens is None:
            continue
        weights = sum(item.weight for item in spec.data)
        for name, weight in ((item.source.name, item.weight) for item in spec.data if item.source.name in chars):
            read = tokens * weight / weights
            passes = round(read * bytes_per_token(spec.model.vocab_size) / max(1, chars[name]))
            if passes > MANY_PASSES:
                notes.append(
                    f"pretrain reads the text of {name} about {passes:,} times: beyond {MANY_PASSES} passes a model "
                    f"mostly learns it by heart; {shorter_horizon(spec.stage, tokens, passes)}, or add text"
                )
            elif passes > 1:
                notes.append(f"pretrain reads the text of {name} about {passes} times")
    return notes


def shorter_horizon(stage: str, tokens: int, passes: int) -> str:
    """Return the horizon with which a stage that makes `passes` of some text in `tokens` makes only a few of them."""
    few = show_count(tokens * MANY_PASSES / passes)
    return f"lower `{stage}.horizon` ({MANY_PASSES} passes are about {few} tokens)"
