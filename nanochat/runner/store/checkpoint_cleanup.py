"""Checkpoints of a finished stage: deleted, for its output holds the model, unless the recipe asked to keep them."""

from __future__ import annotations

import shutil
from contextlib import suppress

from pydantic import ValidationError

from nanochat.errors import LockError
from nanochat.plan.specs import Job
from nanochat.runner.store.locks import stage_lock
from nanochat.storage.layout import StageFolder

_DOOMED = ".deleting-checkpoints"


def delete_checkpoints(folder: StageFolder) -> None:
    """Delete the checkpoints of a stage whose record is written, unless its job keeps them; the lock must be held.

    They are renamed first: after a kill in the middle there is no half checkpoint that looks whole.
    """
    doomed = folder.path / _DOOMED
    if doomed.exists():
        shutil.rmtree(doomed)
    if folder.checkpoints.is_dir() and not _are_kept(folder):
        folder.checkpoints.rename(doomed)
        shutil.rmtree(doomed)


def sweep_checkpoints(folder: StageFolder) -> None:
    """Delete what a kill between record and deletion left in a finished stage's folder; nothing where it is in use."""
    if not (folder.checkpoints.is_dir() or (folder.path / _DOOMED).exists()):
        return
    with suppress(LockError), stage_lock(folder, orphan_wait_seconds=0):
        if folder.record.is_file():
            delete_checkpoints(folder)


def _are_kept(folder: StageFolder) -> bool:
    """Return whether the run that computed the stage asked to keep them; true where that cannot be read."""
    try:
        job = Job.model_validate_json(folder.job.read_bytes())
    except (FileNotFoundError, ValidationError):
        return True
    return job.execution.checkpoint_keep_when_done
