"""What is kept about a finished stage (`record.json`) and about a run (`run.json`), and the digest of outputs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from nanochat.plan.stages import training_stages
from nanochat.storage.files import sha256_of_file, write_text
from nanochat.storage.layout import RunFolder, StageFolder

RunStatus = Literal["running", "finished", "failed", "interrupted"]
StageStatus = Literal["waiting", "running", "finished", "cached", "failed", "interrupted"]
_VOLATILE_PREFIX = "timings"
_TOLD_BY_TRAINING = frozenset({"result.json", "samples.md"})


class _Kept(BaseModel):
    """Base of what is written to disk. Unknown keys of a later version are ignored."""

    # JSON knows no NaN, but a metric may be one: it must come back as it was.
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants")


class Provenance(_Kept):
    """Which code and machine produced something."""

    git_commit: str | None
    git_dirty: bool
    packages: dict[str, str]
    python: str
    platform: str
    host: str


class Cost(_Kept):
    """Time and space, planned or measured; None where it is not known."""

    seconds: float | None = None
    peak_memory_bytes: int | None = None
    disk_bytes: int | None = None


class StageIdentity(_Kept):
    """What a stage's fingerprint was made of, and who asked for it first."""

    stage: str
    fingerprint: str
    recipe_name: str
    document: dict[str, JsonValue]
    """What was hashed: fields, source digests, upstream digests; see `plan.fingerprint`."""


class StageRecord(StageIdentity):
    """A finished stage."""

    format: Literal[1] = 1
    output_digest: str
    output_files: dict[str, str]
    metrics: dict[str, float]
    provenance: Provenance
    device: str
    source_commits: dict[str, str] = {}
    """The commit of each hub source."""
    started: float
    finished: float
    planned: Cost
    measured: Cost
    tracking_uri: str | None = None
    mlflow_run_id: str | None = None


class StageEntry(_Kept):
    """A stage in a run."""

    stage: str
    title: str
    status: StageStatus = "waiting"
    folder: str | None = None
    """Relative to the base folder."""
    init_from: str | None = None
    """Folder of the stage whose weights this one starts from, where `init_from` means one; relative likewise."""
    reason: str = ""
    planned: Cost = Cost()
    params: dict[str, str] = {}
    sources: dict[str, str] = {}
    """Where each source came from, by name."""
    started: float | None = None
    finished: float | None = None
    spent_seconds: float = 0.0
    """Time of all attempts."""


class RunTracking(_Kept):
    """Where a run is shown."""

    kind: Literal["mlflow", "none"]
    uri: str | None = None
    experiment: str = "nanochat"
    tags: dict[str, str] = {}


class RunState(_Kept):
    """A run: what was asked and how far it is."""

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
    """How it ended, in a sentence."""
    host: str
    pid: int
    process_started: float
    provenance: Provenance
    tracking: RunTracking
    command: str = ""
    """What continues or repeats the run."""
    expectations: dict[str, str] = {}
    stages: tuple[StageEntry, ...] = Field(default=())

    def entry(self, stage: str) -> StageEntry:
        """Return a stage's entry; KeyError where the run has no such stage."""
        for entry in self.stages:
            if entry.stage == stage:
                return entry
        raise KeyError(stage)


_T = TypeVar("_T", bound=BaseModel)


def _read(path: Path, model: type[_T]) -> _T | None:
    try:
        return model.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None


def read_record(folder: StageFolder) -> StageRecord | None:
    """Return a stage's record, or None where the stage is not done (or the record cannot be read)."""
    return _read(folder.record, StageRecord)


def read_identity(folder: StageFolder) -> StageIdentity | None:
    """Return what a stage was made of, done or not."""
    return _read(folder.record, StageIdentity) or _read(folder.pending, StageIdentity)


def read_run(folder: RunFolder) -> RunState | None:
    """Return a run's state, or None where there is none that can be read."""
    return _read(folder.state, RunState)


def write_record(folder: StageFolder, record: StageRecord) -> None:
    """Write the proof that a stage is done; must be the last thing written."""
    write_text(folder.record, record.model_dump_json(indent=1))


def write_identity(folder: StageFolder, identity: StageIdentity) -> None:
    """Write what a stage that begins is made of."""
    write_text(folder.pending, identity.model_dump_json(indent=1))


def write_run(folder: RunFolder, state: RunState) -> None:
    """Write a run's state."""
    write_text(folder.state, state.model_dump_json(indent=1))


def output_files(out: Path) -> dict[str, str]:
    """Return the sha256 of each file under `out` by its relative path, without files of wall-clock values."""
    return {
        path.relative_to(out).as_posix(): sha256_of_file(path)
        for path in sorted(out.rglob("*"))
        if path.is_file() and not path.name.startswith(_VOLATILE_PREFIX)
    }


def handed_on(stage: str, files: dict[str, str]) -> dict[str, str]:
    """Return the files that later stages may read: their digest stands for the stage in those stages' fingerprints.

    What a training stage tells people depends on what `run.monitor` looks at, which must not make anything run again.
    """
    told = _TOLD_BY_TRAINING if stage in training_stages() else frozenset()
    return {path: digest for path, digest in files.items() if path not in told}


def output_digest(files: dict[str, str]) -> str:
    """Return the sha256 over the sorted lines `path NUL sha256 newline` of an output folder."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path}\0{files[path]}\n".encode())
    return digest.hexdigest()
