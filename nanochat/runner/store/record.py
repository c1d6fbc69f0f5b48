"""Read and write `record.json` of a finished stage and `run.json` of a run, and compute the digests of outputs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError, computed_field, model_validator

from nanochat.plan.fingerprint import fingerprint_document
from nanochat.plan.stages import training_stages
from nanochat.recipe.schema.values import Condition
from nanochat.storage.checked_json import read_checked, write_checked
from nanochat.storage.files import sync, write_text
from nanochat.storage.integrity import FileDigest, describe_file
from nanochat.storage.layout import FINGERPRINT_CHARS, RESULT_FILE, RUN_STAGES, SAMPLES_FILE, RunFolder, StageFolder

RunStatus = Literal["running", "finished", "failed", "interrupted"]
StageStatus = Literal["waiting", "running", "finished", "cached", "failed", "interrupted"]
_OUT = "out/"
_TIMINGS_PREFIX = "timings"
"""Output files of wall-clock times, which differ every time."""
_MONITORING_FILES = frozenset({RESULT_FILE, SAMPLES_FILE})
"""Files of a training stage that depend on the fields of `run.monitor`."""


class _Stored(BaseModel):
    """Base class of everything that is stored as JSON. Unknown keys, written by a later version, are ignored."""

    # JSON has no NaN, but metrics may be NaN and must be read back as such.
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants", from_attributes=True)

    def write(self, path: Path) -> None:
        """Write this as JSON."""
        write_text(path, self.model_dump_json(indent=1))


class Provenance(_Stored):
    """The code and the machine that produced a result."""

    git_commit: str | None
    """None if the package is not in a git repository of its own."""
    git_dirty: bool
    packages: dict[str, str]
    python: str
    platform: str
    host: str


class Cost(_Stored):
    """Time, memory and disk space, planned (the same fields of an `Estimate`) or measured. None if not known."""

    seconds: float | None = None
    peak_memory_bytes: int | None = None
    micro_batch_size: int | None = None
    """Rows per forward pass. None for a stage that does not train."""
    disk_bytes: int | None = None
    suite_seconds: float | None = None
    """The part of `seconds` in which suites ran during training. None if none did."""


class StageIdentity(_Stored):
    """The inputs that a stage's fingerprint was computed from."""

    stage: str
    fingerprint: str
    document: dict[str, JsonValue]
    """The hashed content: fields, source digests and upstream digests, see `plan.fingerprint`."""

    @property
    def recipe_fields(self) -> dict[str, JsonValue]:
        return self._mapping("fields")

    @property
    def minutes(self) -> float | None:
        """The wall time that the stage trains for. None for all stages whose result is reproducible."""
        value = self.recipe_fields.get(f"{self.stage}.horizon.minutes")
        return value if isinstance(value, float | int) else None

    @property
    def source_digests(self) -> dict[str, str]:
        return {name: str(digest) for name, digest in self._mapping("sources").items()}

    def belongs_to(self, folder: StageFolder) -> bool:
        """Return whether this is the unchanged identity of a stage folder, and not that of a different one.

        Archives that follow links hold copies of stages in the run's folder, under the names of the links.
        """
        is_whole = fingerprint_document(self.document) == self.fingerprint
        is_copy_in_run = folder.path.parent.name == RUN_STAGES and folder.path.name.endswith(f"-{self.stage}")
        return is_whole and (is_copy_in_run or self.fingerprint[:FINGERPRINT_CHARS] == folder.path.name)

    def _mapping(self, key: str) -> dict[str, JsonValue]:
        value = self.document.get(key)
        return value if isinstance(value, dict) else {}


class StageRecord(StageIdentity):
    """A finished stage."""

    format: Literal[1, 2] = 2
    output_digest: str
    files: dict[str, FileDigest]
    """What the stage's files were like, by their path in its folder. Format 1 knows only the sha256 of the output."""
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

    @model_validator(mode="before")
    @classmethod
    def _read_format_1(cls, content: object) -> object:
        if isinstance(content, dict) and content.get("format") == 1:
            files = content.get("output_files", {}).items()
            return {**content, "files": {_OUT + path: FileDigest(sha256=digest) for path, digest in files}}
        return content

    @computed_field  # type: ignore[prop-decorator]  # mypy does not support decorated properties
    @property
    def is_reproducible(self) -> bool:
        """Whether running the stage again gives the same result, as far as its fingerprint decides."""
        return self.minutes is None

    @property
    def output_files(self) -> dict[str, str]:
        """The sha256 of each file of the output by its path there, without files of wall-clock times."""
        return outputs(self.files)

    def write(self, path: Path) -> None:
        """Write this as JSON that holds a digest of itself."""
        write_checked(path, self.model_dump_json(indent=1))


class StageEntry(_Stored):
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
    params: dict[str, str] = {}
    sources: dict[str, str] = {}
    """The location of each source by its name."""
    started: float | None = None
    finished: float | None = None
    spent_seconds: float = 0.0
    """The time of all attempts together."""


class RunTracking(_Stored):
    """Where a run is uploaded to."""

    kind: Literal["mlflow", "none"]
    uri: str | None = None
    experiment: str = "nanochat"
    tags: dict[str, str] = {}
    registered_name: str | None = None
    """The registered model that the run's last model becomes a version of."""
    upload_weights: Literal["registered", "all", "none"] = "registered"


class RunState(_Stored):
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
    expectations: dict[str, Condition] = {}
    stages: tuple[StageEntry, ...] = ()

    def entry(self, stage: str) -> StageEntry:
        """Return the entry of a stage. Raises KeyError if the run has no such stage."""
        return {entry.stage: entry for entry in self.stages}[stage]

    def folders(self, base: Path) -> dict[str, StageFolder]:
        """Return the folder of each stage that has begun or is cached, in the order of the run."""
        return {entry.stage: StageFolder(base / entry.folder) for entry in self.stages if entry.folder is not None}


_T = TypeVar("_T", bound=BaseModel)


def _read(path: Path, model: type[_T]) -> _T | None:
    try:
        return model.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None


def read_record(folder: StageFolder, *, is_renamed: bool = False) -> StageRecord | None:
    """Return the record of a finished stage, or None if it is not finished.

    A damaged record counts as missing. So does that of a folder with a different name, unless this one `is_renamed`.
    """
    record = _read(folder.record, StageRecord)
    if record is None or (
        record.format > 1 and read_checked(folder.record) is None
    ):  # format 1 has no digest of itself
        return None
    return record if is_renamed or record.belongs_to(folder) else None


def read_identity(folder: StageFolder) -> StageIdentity | None:
    """Return the identity of a stage, finished or not, or None if there is none, or a damaged one."""
    identity = read_record(folder) or _read(folder.identity, StageIdentity)
    return identity if identity is not None and identity.belongs_to(folder) else None


def read_run(folder: RunFolder) -> RunState | None:
    """Return the state of a run, or None if it is damaged or missing."""
    try:
        return _read(folder.state, RunState)
    except IsADirectoryError:
        return None


def describe_files(folder: StageFolder) -> dict[str, FileDigest]:
    """Flush the files of a stage that has just finished to disk, and return what they are like for its record."""
    paths = folder.result_files()
    folders = {parent for path in paths for parent in path.parents if parent.is_relative_to(folder.path)}
    for written in [*paths, *folders]:
        sync(written)
    return {path.relative_to(folder.path).as_posix(): describe_file(path) for path in paths}


def outputs(files: Mapping[str, FileDigest]) -> dict[str, str]:
    """Return the sha256 of each file of the output by its path there, without files of wall-clock times."""
    found = {path.removeprefix(_OUT): x.sha256 for path, x in files.items() if path.startswith(_OUT)}
    return {path: digest for path, digest in found.items() if not Path(path).name.startswith(_TIMINGS_PREFIX)}


def files_for_downstream(stage: str, files: dict[str, str]) -> dict[str, str]:
    """Return the output files that later stages may read. Their digest enters the fingerprints of those stages.

    The result and samples of a training stage are left out. They depend on `run.monitor`, which must not cause later
    stages to run again.
    """
    excluded = _MONITORING_FILES if stage in training_stages() else frozenset()
    return {path: digest for path, digest in files.items() if path not in excluded}


def output_digest(files: dict[str, str]) -> str:
    """Return the sha256 over the sorted lines `path NUL sha256 newline` of an output folder."""
    lines = "".join(f"{path}\0{digest}\n" for path, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
