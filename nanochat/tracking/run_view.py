"""What a run and its stages should look like in MLflow: plain values, built from local files by whoever owns those."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A local file and the folder among a run's artifacts that it goes to ("" for the top)."""

    path: Path
    folder: str = ""

    @property
    def name(self) -> str:
        """The artifact's path inside the run."""
        return f"{self.folder}/{self.path.name}" if self.folder else self.path.name


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set that a stage read."""

    name: str
    digest: str
    source: str
    context: str


@dataclass(frozen=True, kw_only=True)
class StageView:
    """One stage as a child run. `streams` are JSON-lines files of metrics by step; `tables` JSON-lines of records."""

    name: str
    link: Path
    status: Status
    description: str
    tags: dict[str, str]
    params: dict[str, str]
    streams: tuple[Path, ...] = ()
    metrics: dict[str, float]
    artifacts: tuple[Artifact, ...] = ()
    tables: tuple[Path, ...] = ()
    datasets: tuple[Dataset, ...] = ()
    started: float | None = None
    """Seconds since 1970, as `ended`; None where not known: when it is sent."""
    ended: float | None = None


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run of a recipe as a parent run, with the stages it ran itself in order."""

    name: str
    link: Path
    status: Status
    description: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    artifacts: tuple[Artifact, ...] = ()
    stages: tuple[StageView, ...] = ()
    started: float | None = None
    ended: float | None = None
