"""Delete stage folders that no run refers to.

A stage is kept when any run names it, as its own or as what `init_from` means, or when somebody holds its lock. Before
a folder is deleted it is renamed, so that a killed gc leaves a folder that is whole or one that the next gc removes,
never a half stage that looks done.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nanochat.errors import LockError, PreflightError
from nanochat.runner.store.locks import claims, is_locked, stage_lock
from nanochat.runner.store.record import read_run
from nanochat.storage.files import folder_bytes
from nanochat.storage.layout import StageFolder, run_folders, stage_folders

_DOOMED = ".deleting-"


@dataclass(frozen=True)
class Unreferenced:
    """A stage folder that no run refers to."""

    folder: StageFolder
    size_bytes: int


def find_unreferenced(base: Path) -> list[Unreferenced]:
    """Return the stage folders that no run refers to and nobody is working in.

    Raises:
        PreflightError: a run's `run.json` cannot be read, so that what it refers to is not known.
    """
    kept = referenced(base)
    return [
        Unreferenced(folder, folder_bytes(folder.path))
        for folder in stage_folders(base)
        if not folder.path.name.startswith(_DOOMED) and folder.path not in kept and not is_locked(folder)
    ]


def collect(base: Path) -> list[Unreferenced]:
    """Delete the unreferenced stage folders and what a killed gc left; return what was deleted."""
    for leftover in _leftovers(base):
        shutil.rmtree(leftover)
    deleted = []
    for candidate in find_unreferenced(base):
        with suppress(LockError), stage_lock(candidate.folder, orphan_wait_seconds=0):
            doomed = candidate.folder.path.with_name(f"{_DOOMED}{candidate.folder.path.name}-{os.getpid()}")
            with claims(base, to_delete=True):
                # A run may have claimed the stage since it was listed: it is named in the run before it is used.
                if candidate.folder.path in referenced(base):
                    continue
                candidate.folder.path.rename(doomed)
            shutil.rmtree(doomed)
            deleted.append(candidate)
    return deleted


def referenced(base: Path) -> set[Path]:
    """Return the stage folders that runs refer to.

    Raises:
        PreflightError: a run's `run.json` cannot be read.
    """
    kept: set[Path] = set()
    for run in run_folders(base):
        state = read_run(run)
        if state is None:
            raise PreflightError(
                f"{run.state} cannot be read, so it is not known which stages that run refers to; "
                f"repair it, or delete the folder {run.path} if the run is not wanted"
            )
        named = (place for entry in state.stages for place in (entry.folder, entry.init_from) if place is not None)
        kept |= {base / place for place in named}
    return kept


def _leftovers(base: Path) -> Iterator[Path]:
    yield from sorted((base / "stages").glob(f"*/{_DOOMED}*"))
