"""The content of a run in MLflow, as plain values. The runner builds them from the files of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

HOST_TAG, PID_TAG, STARTED_TAG = "host", "pid", "pid_started"
MACHINE_TAG = "pid_machine"
"""What counts the pid: a boot of a machine, or a container. Host names change, and several machines may share one."""
KEY_TAG = "upload_key"
SWEEP_TAG = "sweep"
"""The sweep that a run is a cell of."""
CACHED_TAG_PREFIX = "cached."
OWN_TAGS = frozenset({"git_commit", HOST_TAG, MACHINE_TAG, PID_TAG, STARTED_TAG, KEY_TAG, SWEEP_TAG})
"""Tags of a run that the runner sets. Those of cached stages begin with `CACHED_TAG_PREFIX`."""
OWN_MLFLOW_TAGS = frozenset(
    {
        *("mlflow.user", "mlflow.source.name", "mlflow.source.type"),
        *("mlflow.note.content", "mlflow.parentRunId", "mlflow.loggedArtifacts"),
    }
)
"""Tags of MLflow that are set here. A user who sets others would rename, move or hide runs."""


def metric_name(result: str) -> str:
    """Return the name in MLflow of a result called `stage.metric`. MLflow groups charts by what is before the slash."""
    return result.replace(".", "/", 1)


Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A local file, and the artifact folder that it is uploaded to ("" for the top)."""

    path: Path
    folder: str = ""

    @property
    def name(self) -> str:
        return f"{self.folder}/{self.path.name}" if self.folder else self.path.name


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set that a stage read."""

    name: str
    digest: str
    source: str
    context: str


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run in MLflow: a run of a recipe with its stages as child runs, one of these stages, or a sweep."""

    name: str
    link: Path
    status: Status
    description: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    streams: tuple[Path, ...] = ()
    """JSON Lines files of metrics by step."""
    artifacts: tuple[Artifact, ...] = ()
    tables: tuple[Path, ...] = ()
    """JSON Lines files whose records MLflow shows as a table."""
    datasets: tuple[Dataset, ...] = ()
    stages: tuple[RunView, ...] = ()
    """The stages that the run computed itself, in order."""
    parent: RunView | None = None
    """The sweep that the run is a cell of. Only its name and tags are read, to create its MLflow run if needed."""
    started: float | None = None
    """Seconds since the epoch. If None, MLflow uses the time of the upload; likewise for `ended`."""
    ended: float | None = None
