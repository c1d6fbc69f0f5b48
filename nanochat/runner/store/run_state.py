"""Reads and writes `run.json`: what a run was asked for, and how far it has come."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from nanochat.data.files.selection.path_patterns import literal_path
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.plan.plan import Plan, StagePlan
from nanochat.plan.stages import STAGES
from nanochat.recipe.check.tracking_values import DEFAULT_EXPERIMENT
from nanochat.recipe.schema.field_types import Condition
from nanochat.runner.store.record import Cost, Provenance, Stored, Time, read_stored
from nanochat.runner.store.verification import ModelFiles
from nanochat.storage.layout import RunFolder, StageFolder, stages_folder

RunStatus = Literal["running", "finished", "failed", "interrupted"]
StageStatus = Literal["waiting", "running", "finished", "cached", "failed", "interrupted"]


def _require_stage(name: str) -> str:
    """Refuse the stage of a later version, of which nothing is known here."""
    if name not in STAGES:
        raise ValueError(f"no stage is called {name!r}")
    return name


class StageEntry(Stored):
    """A stage in a run."""

    stage: Annotated[str, AfterValidator(_require_stage)]
    title: str
    status: StageStatus = "waiting"
    folder: str | None = None
    """Relative to the base folder."""
    output_digest: str | None = None
    """The digest of the result, to notice that the stage was computed again since. None until it is finished."""
    init_from: str | None = None
    """The stage folder with the initial weights, relative to the base folder. None if there is none under it."""
    reason: str = ""
    planned: Cost = Cost()
    params: dict[str, str] = Field(default={})
    sources: dict[str, str] = Field(default={})
    """The location of each source by its name."""
    started: Time | None = None
    finished: Time | None = None
    spent_seconds: float = 0.0
    """The time of all attempts together."""


class RunTracking(Stored):
    """Where a run is uploaded to."""

    kind: Literal["mlflow", "none"]
    uri: str | None = None
    experiment: str = DEFAULT_EXPERIMENT
    tags: dict[str, str] = Field(default={})
    registered_name: str | None = None
    """The registered model that the run's last model becomes a version of."""
    upload_weights: Literal["registered", "all", "none"] = "registered"


class RunState(Stored):
    """A run: what was asked for, and how far it has come."""

    format: Literal[1] = 1
    name: str
    description: str = ""
    recipe: str
    overrides: tuple[str, ...] = ()
    seed: int
    plan_digest: str
    created: Time
    updated: Time
    status: RunStatus
    message: str = ""
    """How it ended, as text for the user."""
    exit_code: int | None = None
    """The exit code of its command; None until it has ended, or if its process died."""
    host: str
    machine: str = ""
    """See `provenance.machine_id`."""
    pid: int
    process_started: float
    provenance: Provenance
    tracking: RunTracking
    command: str = ""
    """The command that resumes or repeats the run."""
    sweep: str = ""
    """The sweep that the run is a cell of, as NAME/TIME. Empty for a run of its own."""
    expectations: dict[str, Condition] = Field(default={})
    stages: tuple[StageEntry, ...] = ()

    def entry(self, stage: str) -> StageEntry:
        """Return the entry of a stage. Raises KeyError if the run has no such stage."""
        return {entry.stage: entry for entry in self.stages}[stage]

    def folders(self, base: Path) -> dict[str, StageFolder]:
        """Return the folder of each stage that has begun or is cached, in the order of the run."""
        return {entry.stage: StageFolder(base / entry.folder) for entry in self.stages if entry.folder is not None}


def read_run(folder: RunFolder) -> RunState | None:
    """Return the state of a run, or None if it is damaged or missing."""
    return read_stored(folder.state, RunState)


def entries_of(plan: Plan, init_models: Mapping[str, ModelFiles], base: Path) -> tuple[StageEntry, ...]:
    """Return the entries of a plan's stages, of which none has begun. `init_models` are the weights to start from."""
    return tuple(
        StageEntry(
            stage=stage.name,
            title=f"{number}-{stage.name}",
            init_from=_stage_of(init_models[stage.name].folder, base) if stage.name in init_models else None,
            planned=Cost.model_validate(stage.estimate),
            params=_params(stage),
            sources={source.name: _location(source) for source in stage.sources},
        )
        for number, stage in enumerate(plan.stages, start=1)
    )


def _stage_of(model: Path, base: Path) -> str | None:
    """Return the stage folder that contains a model folder, relative to the base, or None if it is outside the base."""
    stages = stages_folder(base).resolve()
    if not model.resolve().is_relative_to(stages):
        return None
    return Path(stages.name, *model.resolve().relative_to(stages).parts[:2]).as_posix()


def _params(stage: StagePlan) -> dict[str, str]:
    """Return the most important parameters of a stage, as text. The resolved recipe holds all of them."""
    kind = STAGES[stage.name]
    values = dict(kind.params(stage.spec))
    if kind.trains:
        values["micro_batch_size"] = stage.execution.micro_batch_size or "auto"
        if stage.execution.processes > 1:
            values["processes"] = stage.execution.processes
    if kind.has_model:
        values["seed"] = stage.spec.seed
    if stage.init_from is not None:
        values["init_from"] = stage.init_from
    return {name: str(value) for name, value in values.items()}


def _location(source: SourceSpec) -> str:
    """Return the location of a source as a recipe would state it."""
    if source.uri is not None:
        return source.uri if source.revision is None else f"{source.uri} @ {source.revision}"
    return (
        f"builtin: {source.builtin}"
        if source.builtin is not None
        else ", ".join(str(literal_path(pattern)) for pattern in source.path or ())
    )
