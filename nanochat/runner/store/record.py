"""Reads and writes `record.json` of a finished stage, and computes the digests of outputs.

Not here: `run.json`, the state of a whole run (`run_state`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, computed_field

from nanochat.plan.fingerprint import fingerprint_document
from nanochat.plan.stages import training_stages
from nanochat.storage.checked_json import read_checked, write_checked
from nanochat.storage.files import read_file, sync, write_text
from nanochat.storage.integrity import FileDigest, describe_file
from nanochat.storage.layout import FINGERPRINT_CHARS, RESULT_FILE, RUN_STAGES, SAMPLES_FILE, StageFolder

_OUT = "out/"
_TIMINGS_PREFIX = "timings"
"""Output files of wall-clock times, which differ every time."""
_MONITORING_FILES = frozenset({RESULT_FILE, SAMPLES_FILE})
"""Files of a training stage that depend on the fields of `run.monitor`."""


LATEST = 253_370_764_800.0
"""The year 9999, because dates end there."""
Time = Annotated[float, Field(ge=0, le=LATEST)]
"""A time in seconds since 1970."""


class Stored(BaseModel):
    """Base class of everything that is stored as JSON. Unknown keys, written by a later version, are ignored."""

    # JSON has no NaN, but metrics may be NaN and must be read back as such.
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants", from_attributes=True)

    def write(self, path: Path) -> None:
        """Write this as JSON."""
        write_text(path, self.model_dump_json(indent=1))


class Provenance(Stored):
    """The code and the machine that produced a result."""

    git_commit: str | None
    """None if the package is not in a git repository of its own."""
    git_dirty: bool
    packages: dict[str, str]
    python: str
    platform: str
    host: str


class Cost(Stored):
    """Time, memory and disk space, planned (the same fields of an `Estimate`) or measured. None if not known."""

    seconds: float | None = None
    peak_memory_bytes: int | None = None
    micro_batch_size: int | None = None
    """Rows per forward pass. None for a stage that does not train."""
    disk_bytes: int | None = None
    suite_seconds: float | None = None
    """The part of `seconds` in which suites ran during training. None if none did."""


class StageIdentity(Stored):
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

    format: Literal[2] = 2
    output_digest: str
    files: dict[str, FileDigest]
    """The size, time and digest of each of the stage's files, by its path in the folder."""
    metrics: dict[str, float]
    provenance: Provenance
    device: str
    source_commits: dict[str, str] = {}
    """The commit of each hub source."""
    started: Time
    finished: Time
    planned: Cost
    measured: Cost
    tracking_uri: str | None = None
    mlflow_run_id: str | None = None

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


_T = TypeVar("_T", bound=BaseModel)


def read_stored(path: Path, model: type[_T]) -> _T | None:
    """Return the content of a file, or None if it is damaged or missing."""
    try:
        return model.model_validate_json(read_file(path))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValidationError):
        return None


def read_record(folder: StageFolder, *, is_renamed: bool = False) -> StageRecord | None:
    """Return the record of a finished stage, or None if it is not finished.

    A damaged record counts as missing. So does that of a folder with a different name, unless this one `is_renamed`.
    """
    record = read_stored(folder.record, StageRecord)
    if record is None or read_checked(folder.record) is None:
        return None
    return record if is_renamed or record.belongs_to(folder) else None


def read_identity(folder: StageFolder) -> StageIdentity | None:
    """Return the identity of a stage, finished or not, or None if there is none, or a damaged one."""
    identity = read_record(folder) or read_stored(folder.identity, StageIdentity)
    return identity if identity is not None and identity.belongs_to(folder) else None


def describe_files(folder: StageFolder) -> dict[str, FileDigest]:
    """Flush the files of a stage that has just finished to disk, and return what they are like for its record."""
    paths = folder.result_files()
    folders = {parent for path in paths for parent in path.parents if parent.is_relative_to(folder.path)}
    for written in [*paths, *folders]:
        sync(written)
    return {path.relative_to(folder.path).as_posix(): describe_file(path) for path in paths}


def outputs(files: Mapping[str, FileDigest]) -> dict[str, str]:
    """Return the sha256 of each file of the output by its path there, without files of wall-clock times."""
    outputs = {path.removeprefix(_OUT): x.sha256 for path, x in files.items() if path.startswith(_OUT)}
    return {path: digest for path, digest in outputs.items() if not Path(path).name.startswith(_TIMINGS_PREFIX)}


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
