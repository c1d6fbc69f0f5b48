"""Deletes stages, token caches, downloads and converted copies that no run needs, and leftovers of killed processes.

A run refers to the stages that it computed or took from the cache, and to those whose weights `init_from` names. Its
list of data names the data that it needs. A stage folder is kept while a process holds its lock, and a token cache or a
download while it is being written. A stage folder is renamed before it is deleted. If the deletion is killed, the next
one removes the renamed folder, so a half-deleted stage never looks finished.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nanochat.data.hub import stored_commits
from nanochat.data.hub.hub_source import is_commit
from nanochat.data.ingest import store as ingest
from nanochat.data.places import addresses
from nanochat.data.token_cache.parts import FOLDER, LOCK_FILE, read_list
from nanochat.errors import LockError, PreflightError
from nanochat.runner.store.locks import claims, is_locked, run_lock, stage_lock
from nanochat.runner.store.needed_data import delete_stale_lists, needed_folders
from nanochat.runner.store.run_catalog import describe_damaged_run
from nanochat.runner.store.run_state import read_run
from nanochat.storage.files import delete, delete_leftovers, find_leftovers, folder_bytes, sha256_of_file
from nanochat.storage.layout import TOKENIZER_FILE, RunFolder, StageFolder, run_folders, stage_folders, stages_folder
from nanochat.storage.locking import lock_file
from nanochat.storage.temporary_folders import delete_dead_folders, find_dead_folders

_DELETING = ".deleting-"


@dataclass(frozen=True)
class Unreferenced:
    """A folder or file that no run refers to."""

    path: Path
    size_bytes: int


def find_unreferenced_stages(base: Path) -> list[Unreferenced]:
    """Return the stage folders that no run refers to and no process is working in.

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
    known = {
        sha256_of_file(path)
        for stage in _referenced_folders(base)
        for path in stage.rglob(TOKENIZER_FILE)
        if path.is_file()
    }
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


def find_dead_scratch(base: Path) -> list[Unreferenced]:
    """Return the unfinished files of killed processes in unlocked runs and stages, and their temporary folders."""
    folders = [folder for folder in _folders_with_leftovers(base) if not is_locked(folder)]
    paths = [path for folder in folders for path in find_leftovers(folder.path)]
    return [Unreferenced(path, _size_bytes(path)) for path in (*paths, *find_dead_folders())]


def delete_dead_scratch(base: Path) -> list[Unreferenced]:
    """Delete the files and folders that `find_dead_scratch` finds, and return them."""
    scratch = find_dead_scratch(base)
    for folder in _folders_with_leftovers(base):
        lock = run_lock(folder) if isinstance(folder, RunFolder) else stage_lock(folder, orphan_wait_seconds=0)
        with suppress(LockError, PermissionError), lock:
            for leftover in find_leftovers(folder.path):
                delete(leftover)
    delete_dead_folders()
    return [item for item in scratch if not item.path.exists()]


def _folders_with_leftovers(base: Path) -> list[RunFolder | StageFolder]:
    folders: list[RunFolder | StageFolder] = [*run_folders(base), *stage_folders(base)]
    return [folder for folder in folders if find_leftovers(folder.path)]


def _size_bytes(path: Path) -> int:
    return folder_bytes(path) if path.is_dir() else path.stat().st_size


def find_unneeded_copies(base: Path) -> list[Unreferenced]:
    """Return the converted copies of data files that no run needs; none while files are being converted.

    Raises PreflightError if the list of what a run needs cannot be read.
    """
    if _is_being_written(base / ingest.FOLDER):
        return []
    needed = needed_folders(base)
    return [
        Unreferenced(folder, folder_bytes(folder))
        for folder in ingest.copies(base)
        if folder.with_name(folder.name.removesuffix(ingest.PARTIAL_SUFFIX)) not in needed
    ]


def delete_unneeded_copies(base: Path) -> list[Unreferenced]:
    """Delete the converted copies of data files that no run needs, and return them. Runs can convert them again."""
    with claims(base, to_delete=True):  # runs name their data before they look whether these exist
        copies = find_unneeded_copies(base)
        for copy in copies:
            # The list of parts is deleted first: without it, a half-deleted copy counts as unfinished.
            (copy.path / ingest.LIST_FILE).unlink(missing_ok=True)
            shutil.rmtree(copy.path)
    return copies


def find_unneeded_downloads(base: Path) -> list[Unreferenced]:
    """Return the downloads that no run needs and that are not being downloaded. Raises as `find_unneeded_copies`."""
    needed = needed_folders(base)
    downloads = [
        Unreferenced(folder, folder_bytes(folder))
        for folder in addresses.stored_downloads(base)
        if folder not in needed and not _is_being_written(folder)
    ]
    commits = [
        Unreferenced(folder, stored_commits.commit_bytes(folder))
        for folder in stored_commits.stored_commits(base)
        if folder not in needed and not _is_being_written(folder.parent)
    ]
    return [*downloads, *commits]


def delete_unneeded_downloads(base: Path) -> list[Unreferenced]:
    """Delete the downloads that no run needs, and return them. Of the others, delete what killed downloads left."""
    with claims(base, to_delete=True):
        unneeded = find_unneeded_downloads(base)
        for download in unneeded:
            is_of_hub = is_commit(download.path.name)
            (stored_commits.delete_commit if is_of_hub else addresses.delete_download)(download.path)
        for folder in addresses.stored_downloads(base):
            if not _is_being_written(folder):
                addresses.delete_dead_scratch(folder)
        stored_commits.delete_dead_scratch(base)
        delete_stale_lists(base)
    delete_leftovers(base)
    return unneeded


def _referenced_folders(base: Path) -> set[Path]:
    """Return the stage folders that runs refer to. Raises PreflightError if a `run.json` cannot be read."""
    referenced: set[Path] = set()
    for run in run_folders(base):
        state = read_run(run)
        if state is None:
            raise PreflightError(f"it is unknown which results a run refers to: {describe_damaged_run(run)}")
        places = (place for entry in state.stages for place in (entry.folder, entry.init_from) if place is not None)
        referenced |= {base / place for place in places}
    return referenced


def _tokenizer_digest(cache: Path) -> str | None:
    listed = read_list(cache)
    return str(listed.key["tokenizer"]) if listed is not None else None


def _is_being_written(cache: Path) -> bool:
    path = cache / LOCK_FILE
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return not lock_file(descriptor, path, shared=True, wait=False)
    finally:
        os.close(descriptor)
