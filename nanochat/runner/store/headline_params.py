"""The handful of parameters of a stage that tell runs apart at a glance; the resolved recipe holds the rest."""

from __future__ import annotations

from nanochat.data.sources import SourceSpec
from nanochat.plan.estimate.estimate import Estimate
from nanochat.plan.plan import StagePlan
from nanochat.plan.stages import STAGES
from nanochat.runner.store.record import Cost


def params_of(stage: StagePlan) -> dict[str, str]:
    """Return the parameters of a stage that matter most, as text."""
    values = dict(STAGES[stage.name].params(stage.spec))
    if STAGES[stage.name].trains:
        values["micro_batch_size"] = stage.execution.micro_batch_size or "auto"
        if stage.execution.processes > 1:
            values["processes"] = stage.execution.processes
    if STAGES[stage.name].has_model:
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
