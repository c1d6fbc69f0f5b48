"""The handful of parameters of a stage that tell runs apart at a glance; the resolved recipe holds the rest."""

from __future__ import annotations

from typing import assert_never

from nanochat.data.sources import SourceSpec
from nanochat.plan.estimate.estimate import Estimate
from nanochat.plan.plan import StagePlan
from nanochat.plan.specs import BaseEvalSpec, ChatEvalSpec, ExecutionSpec, PretrainSpec, SftSpec, TokenizerSpec
from nanochat.runner.store.record import Cost


def params_of(stage: StagePlan) -> dict[str, str]:
    """Return the parameters of a stage that matter most, as text."""
    values: dict[str, object]
    match stage.spec:
        case TokenizerSpec() as spec:
            values = {"source": spec.source.name, "vocab_size": spec.vocab_size, "max_chars": spec.max_chars}
        case PretrainSpec() as spec:
            values = _pretrain(spec, stage.estimate, stage.execution)
        case SftSpec() as spec:
            horizon = spec.steps or spec.tokens or spec.epochs
            unit = "steps" if spec.steps else "tokens" if spec.tokens else "epochs"
            values = {
                "data": ", ".join(item.name for item in spec.data),
                unit: horizon,
                "tokens_per_step": spec.tokens_per_step,
                "lr_scale": spec.optimizer.lr_scale,
                "micro_batch_size": stage.execution.micro_batch_size or "auto",
            }
        case BaseEvalSpec() | ChatEvalSpec() as spec:
            values = {"suites": ", ".join(spec.suites)}
        case _:
            assert_never(stage.spec)
    if isinstance(stage.spec, PretrainSpec | SftSpec) and stage.execution.processes > 1:
        values["processes"] = stage.execution.processes
    if not isinstance(stage.spec, TokenizerSpec):
        values["seed"] = stage.spec.seed
    if stage.init_from is not None:
        values["init_from"] = stage.init_from
    return {name: str(value) for name, value in values.items()}


def source_places(stage: StagePlan) -> dict[str, str]:
    """Return where each source of a stage is, by its name."""
    return {source.name: source_place(source) for source in stage.sources}


def source_place(source: SourceSpec) -> str:
    """Return where a source is, as a user would write it."""
    if source.uri is not None:
        return source.uri if source.revision is None else f"{source.uri} @ {source.revision}"
    if source.builtin is not None:
        return f"builtin: {source.builtin}"
    return ", ".join(source.path or ())


def cost_of(estimate: Estimate) -> Cost:
    """Return the part of an estimate that is measured as well."""
    return Cost(
        seconds=estimate.seconds,
        peak_memory_bytes=estimate.peak_memory_bytes,
        disk_bytes=estimate.disk_bytes,
    )


def _pretrain(spec: PretrainSpec, estimate: Estimate, execution: ExecutionSpec) -> dict[str, object]:
    model = spec.model
    return {
        "architecture": model.architecture,
        "n_layer": model.n_layer,
        "n_embd": model.n_embd,
        "sequence_len": model.sequence_len,
        "parameters": estimate.parameters,
        "steps": spec.steps,
        "tokens_per_step": spec.tokens_per_step,
        "tokens": spec.steps * spec.tokens_per_step,
        "micro_batch_size": execution.micro_batch_size or "auto",
        "optimizer": spec.optimizer.variant,
        "schedule": spec.schedule.kind,
    }
