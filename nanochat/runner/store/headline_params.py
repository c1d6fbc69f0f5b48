"""The most important parameters of a stage, for MLflow and the report. The resolved recipe holds all of them."""

from __future__ import annotations

from nanochat.data.files.local_files import literal_path
from nanochat.data.sources import SourceSpec
from nanochat.plan.estimate.estimate import Estimate
from nanochat.plan.plan import StagePlan
from nanochat.plan.stages import STAGES
from nanochat.runner.store.record import Cost


def params_of(stage: StagePlan) -> dict[str, str]:
    """Return the most important parameters of a stage, as text."""
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


def source_locations(stage: StagePlan) -> dict[str, str]:
    """Return the location of each source of a stage, by its name."""
    return {source.name: _location(source) for source in stage.sources}


def _location(source: SourceSpec) -> str:
    """Return the location of a source as a recipe would state it."""
    if source.uri is not None:
        return source.uri if source.revision is None else f"{source.uri} @ {source.revision}"
    if source.builtin is not None:
        return f"builtin: {source.builtin}"
    return ", ".join(str(literal_path(pattern)) for pattern in source.path or ())


def cost_of(estimate: Estimate) -> Cost:
    """Return the part of an estimate that is later compared with measurements."""
    return Cost(
        seconds=estimate.seconds,
        peak_memory_bytes=estimate.peak_memory_bytes,
        disk_bytes=estimate.disk_bytes,
    )
