"""Delete folders that no run refers to: stages, token caches of unused tokenizers, and converted copies of data files.

A run refers to the stages that it computed or took from the cache, and to those whose weights `init_from` names. A
stage folder is kept while somebody holds its lock, and a token cache while it is being written. A stage folder is
renamed before it is deleted. If the deletion is killed, the next one removes the renamed folder, so a half-deleted
stage never looks finished.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nanochat.data.ingest import store as ingest
from nanochat.data.token_cache.parts import FOLDER, LOCK_FILE, read_list
from nanochat.errors import LockError, PreflightError
from nanochat.runner.store.locks import claims, is_locked, stage_lock
from nanochat.runner.store.record import read_run
from nanochat.storage.files import folder_bytes, sha256_of_file
from nanochat.storage.layout import TOKENIZER_FILE, RunFolder, StageFolder, run_folders, stage_folders, stages_folder
from nanochat.storage.locking import lock_file

_DELETING = ".deleting-"


@dataclass(frozen=True)
class Unreferenced:
    """A folder that no run refers to."""

    path: Path
    size_bytes: int


def find_unreferenced_stages(base: Path) -> list[Unreferenced]:
    """Return the stage folders that no run refers to and nobody is working in.

    Raises PreflightError if a `run.json` cannot be read, since it is unknown what that run refers to.
    """
    kept = _referenced_folders(base)
    return [
        Unreferenced(folder.path, folder_bytes(folder.path))
        for folder in stage_folders(base)
        if not folder.path.name.startswith(_DELETING) and folder.path not in kept and not is_locked(folder)
    ]


def delete_unreferenced_stages(base: Path) -> list[Unreferenced]:
    """Delete the unreferenced stage folders and what an interrupted deletion left. Return what was deleted."""
    for leftover in stages_folder(base).glob(f"*/{_DELETING}*"):
        shutil.rmtree(leftover)
    deleted = []
    for candidate in find_unreferenced_stages(base):
        path = candidate.path
        with suppress(LockError), stage_lock(StageFolder(path), orphan_wait_seconds=0):
            renamed = path.with_name(f"{_DELETING}{path.name}-{os.getpid()}")
            with claims(base, to_delete=True):
                # Runs name a stage before they use it, so a run that started in the meantime is seen here.
                if path in _referenced_folders(base):
                    continue
                path.rename(renamed)
            shutil.rmtree(renamed)
            deleted.append(candidate)
    return deleted


def find_unreferenced_token_caches(base: Path) -> list[Unreferenced]:
    """Return the token caches whose tokenizer belongs to no referenced stage. Raises as `find_unreferenced_stages`."""
    known = {sha256_of_file(path) for stage in _referenced_folders(base) for path in stage.rglob(TOKENIZER_FILE)}
    return [
        Unreferenced(folder, folder_bytes(folder))
        for folder in sorted((base / FOLDER).glob("*"))
        if _tokenizer_digest(folder) not in known and not _is_being_written(folder)
    ]


def delete_unreferenced_token_caches(base: Path) -> list[Unreferenced]:
    """Delete the unreferenced token caches and return them. A run that needs one again writes it again."""
    caches = find_unreferenced_token_caches(base)
    for cache in caches:
        # The list of parts is deleted first: without it, a half-deleted cache counts as not written.
        for path in sorted(cache.path.glob("*.json")):
            path.unlink()
        shutil.rmtree(cache.path)
    return caches


def find_unreferenced_copies(base: Path) -> list[Unreferenced]:
    """Return the converted copies of data files that no run reads; none while files are being converted."""
    if _is_being_written(base / ingest.FOLDER):
        return []
    known = {name for run in run_folders(base) for name in _copies_of(run)}
    return [
        Unreferenced(folder, folder_bytes(folder))
        for folder in ingest.copies(base)
        if folder.name.removesuffix(ingest.PARTIAL_SUFFIX) not in known
    ]


def delete_unreferenced_copies(base: Path) -> list[Unreferenced]:
    """Delete the converted copies of data files that no run reads, and return them. Runs can convert them again."""
    with claims(base, to_delete=True):  # runs name their copies before they look whether these exist
        copies = find_unreferenced_copies(base)
        for copy in copies:
            # The list of parts is deleted first: without it, a half-deleted copy counts as unfinished.
            (copy.path / ingest.LIST_FILE).unlink(missing_ok=True)
            shutil.rmtree(copy.path)
    return copies


def _copies_of(run: RunFolder) -> list[str]:
    try:
        return [str(name) for name in json.loads(run.copies.read_text(encoding="utf-8"))]
    except (OSError, ValueError):
        return []


def _referenced_folders(base: Path) -> set[Path]:
    """Return the stage folders that runs refer to. Raises PreflightError if a `run.json` cannot be read."""
    referenced: set[Path] = set()
    for run in run_folders(base):
        state = read_run(run)
        if state is None:
            raise PreflightError(
                f"{run.state} cannot be read, so it is unknown which stages that run refers to; "
                f"repair it, or delete the folder {run.path} if you do not need the run"
            )
        places = (place for entry in state.stages for place in (entry.folder, entry.init_from) if place is not None)
        referenced |= {base / place for place in places}
    return referenced


def _tokenizer_digest(cache: Path) -> str | None:
    listed = read_list(cache)
    return str(listed.key["tokenizer"]) if listed is not None else None


def _is_being_written(cache: Path) -> bool:
    path = cache / LOCK_FILE
    try:
        with path.open("r") as file:
            return not lock_file(file.fileno(), path, wait=False)
    except OSError:
        return False
