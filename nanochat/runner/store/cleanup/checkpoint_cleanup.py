"""Deletes the checkpoints of finished stages. Their output holds the model, unless the recipe asks to keep them."""

from __future__ import annotations

import shutil
from contextlib import suppress

from pydantic import ValidationError

from nanochat.errors import LockError
from nanochat.plan.specs.job import Job
from nanochat.runner.store.locks import stage_lock
from nanochat.storage.files import read_file
from nanochat.storage.layout import StageFolder

_DELETING = ".deleting-checkpoints"


def delete_checkpoints(folder: StageFolder) -> None:
    """Delete the checkpoints of a stage whose record is written, unless its job keeps them. The lock must be held.

    The folder is renamed first, so that an interrupted deletion never leaves a damaged checkpoint that looks complete.
    """
    renamed = folder.path / _DELETING
    if renamed.exists():
        shutil.rmtree(renamed)
    if folder.checkpoints.is_dir() and not _keeps_checkpoints(folder):
        folder.checkpoints.rename(renamed)
        shutil.rmtree(renamed)


def sweep_checkpoints(folder: StageFolder) -> None:
    """Delete the checkpoints of a finished stage if a kill prevented that before. Does nothing while it is locked."""
    if folder.checkpoints.is_dir() or (folder.path / _DELETING).exists():
        with suppress(LockError), stage_lock(folder, orphan_wait_seconds=0):
            if folder.record.is_file():
                delete_checkpoints(folder)


def _keeps_checkpoints(folder: StageFolder) -> bool:
    """Return whether the run that computed the stage asked to keep checkpoints. True if its job cannot be read."""
    try:
        return Job.model_validate_json(read_file(folder.job)).execution.checkpoint_keep_when_done
    except (FileNotFoundError, ValidationError):
        return True
