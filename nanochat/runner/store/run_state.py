"""Read and write `run.json`: what a run was asked for, and how far it has come."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from nanochat.recipe.schema.values import Condition
from nanochat.runner.store.record import Cost, Provenance, Stored, read_stored
from nanochat.storage.layout import RunFolder, StageFolder

RunStatus = Literal["running", "finished", "failed", "interrupted"]
StageStatus = Literal["waiting", "running", "finished", "cached", "failed", "interrupted"]


class StageEntry(Stored):
    """A stage in a run."""

    stage: str
    title: str
    status: StageStatus = "waiting"
    folder: str | None = None
    """Relative to the base folder."""
    output_digest: str | None = None
    """That of the result, to notice that the stage was computed again since. None until it is finished."""
    init_from: str | None = None
    """The stage folder with the initial weights, relative to the base folder. None if there is none under it."""
    reason: str = ""
    planned: Cost = Cost()
    params: dict[str, str] = Field(default={})
    sources: dict[str, str] = Field(default={})
    """The location of each source by its name."""
    started: float | None = None
    finished: float | None = None
    spent_seconds: float = 0.0
    """The time of all attempts together."""


class RunTracking(Stored):
    """Where a run is uploaded to."""

    kind: Literal["mlflow", "none"]
    uri: str | None = None
    experiment: str = "nanochat"
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
    created: float
    updated: float
    status: RunStatus
    message: str = ""
    """How it ended, as text for the user."""
    exit_code: int | None = None
    """That of its command; None until it has ended, or if its process died."""
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
    try:
        return read_stored(folder.state, RunState)
    except IsADirectoryError:
        return None
