"""The content of a run in MLflow, as plain values. The runner builds them from the files of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanochat.tracking.points import Point

HOST_TAG, PID_TAG, STARTED_TAG = "host", "pid", "pid_started"
MACHINE_TAG = "pid_machine"
"""What counts the pid: a boot of a machine, or a container. Host names change, and several machines may share one."""
KEY_TAG = "upload_key"
SWEEP_TAG = "sweep"
"""The sweep that a run is a cell of."""
CACHED_TAG_PREFIX = "cached."
HEADLINE_METRICS = ("bpb", "core", "chat_core", "tokens", "minutes")
"""The results of a run that MLflow's table of runs shows, as far as the run has them."""
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
class ModelView:
    """The model of a finished training stage."""

    name: str
    link: Path
    """The file that stores its id in MLflow."""
    run_link: Path
    """The link of the MLflow run that trained it."""
    step: int
    tags: dict[str, str]
    params: dict[str, str]
    folder: Path
    stage: str
    """The folder of the stage, relative to the base folder."""
    files: Mapping[str, str]
    """The sha256 of each of the model's files."""
    is_chat: bool
    is_uploaded: bool
    """Whether to upload the files. Otherwise MLflow only knows where they are."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Metrics of a run that say how good a model is, each with the data set that it was measured on, if it is one."""

    run_link: Path
    model_link: Path
    metrics: Mapping[str, Dataset | None]


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """A condition of the recipe on a result, and whether it is met. `value` is None if no stage reported the metric."""

    metric: str
    condition: str
    value: float | None
    is_met: bool

    def __str__(self) -> str:
        return f"{self.outcome}, {'met' if self.is_met else 'NOT MET'}"

    @property
    def outcome(self) -> str:
        """The condition and the value."""
        value = "not measured" if self.value is None else f"{self.value:.4f}"
        return f"{self.metric} {self.condition}: {value}"


@dataclass(frozen=True, kw_only=True)
class Registration:
    """A model that is to be a version of a registered model."""

    name: str
    model: ModelView
    tags: dict[str, str]
    description: str
    expectations: tuple[Expectation, ...]


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
    points: tuple[Point, ...] = ()
    """Metrics at other steps than 0."""
    streams: tuple[Path, ...] = ()
    """JSON Lines files of metrics by step."""
    artifacts: tuple[Artifact, ...] = ()
    tables: tuple[Path, ...] = ()
    """JSON Lines files whose records MLflow shows as a table."""
    datasets: tuple[Dataset, ...] = ()
    stages: tuple[RunView, ...] = ()
    """The stages that the run computed itself, in order."""
    models: tuple[ModelView, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    registration: Registration | None = None
    parent: RunView | None = None
    """The sweep that the run is a cell of. Only its name and tags are read, to create its MLflow run if needed."""
    started: float | None = None
    """Seconds since the epoch. If None, MLflow uses the time of the upload; likewise for `ended`."""
    ended: float | None = None
