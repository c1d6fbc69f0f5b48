"""Finds files of finished stages and of models that were damaged, lost or exchanged since they were written.

Looking at a plan compares sizes and times, and reads a file only if these differ. Whatever is about to be loaded is
compared by its content.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from nanochat.data.files.digests import MEMORY_FILE, remembered_digests
from nanochat.errors import PreflightError
from nanochat.plan.stages import STAGES
from nanochat.runner.store.record import StageRecord, files_for_downstream, output_digest, read_record
from nanochat.storage.checked_json import is_digest_expected
from nanochat.storage.integrity import MANIFEST_FILE, FileDigest, find_change, read_manifest
from nanochat.storage.layout import MODEL_FILES, OPTIMIZER_FILE, StageFolder

_RESTORE = "restore it from a copy, or use a different model"


def find_damage(folder: StageFolder, record: StageRecord, *, content_of: Collection[str] = ()) -> str | None:
    """Return which recorded file of a finished stage is not as it was written, and why, or None if all are.

    `content_of` names the files whose content is compared even if their size and time are right.
    """
    for name, recorded in record.files.items():
        change = find_change(folder.path / name, recorded, trust_time=name not in content_of)
        if change is not None:
            return f"{name} {change}"
    return None


def damage_to_read(folder: StageFolder, record: StageRecord | None, path: Path) -> str | None:
    """Return how a recorded file of a stage differs from its record, None if it does not or is not recorded.

    Its content is compared, once for each size and time that it has, so that it can be asked for again and again.
    """
    expected = record.files.get(path.relative_to(folder.path).as_posix()) if record is not None else None
    if expected is None:
        return None
    try:
        status = path.stat()
    except OSError:
        return find_change(path, expected)
    return _compare(path, expected, status.st_size, status.st_mtime_ns)


@functools.cache
def _compare(path: Path, expected: FileDigest, _size: int, _time: int) -> str | None:
    return find_change(path, expected)


def files_to_load(record: StageRecord, reader: str) -> dict[str, FileDigest]:
    """Return the files of a finished stage that the stage `reader` loads, by their path in the stage's folder."""
    names = [f"out/{path}" for path in files_for_downstream(record.stage, record.output_files)]
    skipped = f"out/{OPTIMIZER_FILE}" if not STAGES[reader].trains else None
    return {name: record.files[name] for name in names if name != skipped}


@dataclass(frozen=True)
class ModelFiles:
    """The folder of a model, and the expected size, time and digest of each of its files.

    Attributes:
        files: the description of each file by its path.
        remedy: what the user can do if a file is not like that.
    """

    folder: Path
    files: Mapping[Path, FileDigest]
    remedy: str

    @property
    def digest(self) -> str:
        """The digest of the names and contents. It does not depend on where the files are."""
        return output_digest({path.name: described.sha256 for path, described in self.files.items()})

    def check(self, *, trust_times: bool = False) -> None:
        """Raise a PreflightError if a file is not as described. With `trust_times` see `find_change`."""
        for path, expected in self.files.items():
            change = find_change(path, expected, trust_time=trust_times)
            if change is not None:
                raise PreflightError(f"{path} {change}; {self.remedy}")


def _recorded_model(folder: Path) -> ModelFiles | None:
    """Return the digests of a model's files when they were written, None if nothing describes them.

    The record of a stage describes its model and the optimizer's moments; a manifest describes a folder of its own.

    Raises:
        PreflightError: the record of the stage is missing or damaged, or the manifest is damaged.
    """
    stage = StageFolder(folder.parent.parent)
    if folder == stage.model and (stage.record.exists() or stage.identity.exists()):
        record = read_record(stage, is_renamed=True)  # people copy the folder of a stage to keep its model
        if record is None:
            problem = "is damaged" if stage.record.exists() else "is missing, so the stage is not finished"
            raise PreflightError(f"{stage.record} {problem}; run its recipe again, which computes the stage again")
        described = {stage.path / name: digest for name, digest in record.files.items()}
        remedy = f"run its recipe again, which computes {record.stage} again"
    elif (manifest := read_manifest(folder)) is not None:
        described = {folder / name: digest for name, digest in manifest.files.items()}
        remedy = _RESTORE
    elif is_digest_expected(folder / MANIFEST_FILE):
        raise PreflightError(f"{folder / MANIFEST_FILE} is damaged; {_RESTORE}")
    else:
        return None
    return ModelFiles(folder, {path: described[path] for path in _model_paths(folder) if path in described}, remedy)


def model_to_start_from(folder: Path, base: Path, *, with_optimizer: bool) -> ModelFiles:
    """Return the digests of the files that a stage with `init_from` loads, with the optimizer's moments or without.

    If nothing describes a folder, its files are described as they are now. The digest of an unchanged file (path, size,
    time) is remembered under `base`.

    Raises:
        PreflightError: a file is damaged or missing, as far as its size and time show.
    """
    known = _recorded_model(folder)
    if known is None:
        with remembered_digests(base / MEMORY_FILE) as digest_of:
            digests = {
                path: FileDigest(sha256=digest_of(path, None)) for path in _model_paths(folder) if path.is_file()
            }
        remedy = "its size and time are as before; if the new content is right, `touch` the file"
        known = ModelFiles(folder, digests, remedy)
    known.check(trust_times=True)
    skipped = () if with_optimizer else (OPTIMIZER_FILE,)
    return replace(known, files={path: x for path, x in known.files.items() if path.name not in skipped})


def check_model(folder: Path) -> None:
    """Compare a model's files with their record or manifest before they are loaded, if there is one.

    Raises:
        PreflightError: a file is damaged or missing.
    """
    if (known := _recorded_model(folder)) is not None:
        known.check()


def _model_paths(folder: Path) -> list[Path]:
    """Return where the files of a model are. A stage keeps the optimizer's moments beside the folder, a checkpoint in
    it.
    """
    return [*(folder / name for name in (*MODEL_FILES, OPTIMIZER_FILE)), folder.parent / OPTIMIZER_FILE]
