"""The base folder: whether it can be written and locked, what is in it, and what killed commands left there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from nanochat.errors import PreflightError
from nanochat.plan.quantities import show_bytes
from nanochat.plurals import list_names, several
from nanochat.runner.doctor.finding import Finding
from nanochat.runner.doctor.machine import existing_folder
from nanochat.runner.store.cleanup import gc
from nanochat.runner.store.locks import is_locked
from nanochat.runner.store.run_catalog import list_damaged_runs, list_runs
from nanochat.storage.file_errors import SET_BASE_DIR
from nanochat.storage.files import find_write_problem, folder_bytes
from nanochat.storage.layout import runs_folder
from nanochat.storage.locking import lock_file

_CONTENTS = ("stages", "runs", "hub", "ingest", "tokens", "blas", "kernels")


def examine_base_folder(base: Path) -> Iterator[Finding]:
    """Yield the findings of the base folder. Nothing is left behind, and no folder is created."""
    folder = existing_folder(base)
    if (problem := find_write_problem(folder)) is not None:
        text = f"{base} cannot be written ({problem}); `ls`, `report`, `plan` and chat still read it"
        yield Finding("base folder", text, "failure", SET_BASE_DIR)
    elif (problem := _find_lock_problem(folder)) is not None:
        yield Finding("base folder", problem, "failure", SET_BASE_DIR)
    else:
        state = "" if base.is_dir() else ", which the first run creates"
        yield Finding("base folder", f"{base}{state}: can be written and locked")
    if base.is_dir():
        yield _contents(base)
        yield from _runs(base)


def _find_lock_problem(folder: Path) -> str | None:
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        try:
            lock_file(file.fileno(), Path(file.name), wait=False)
        except PreflightError as error:
            return str(error)
    return None


def _contents(base: Path) -> Finding:
    sizes = {name: folder_bytes(base / name) for name in _CONTENTS if (base / name).is_dir()}
    text = ", ".join(f"{name} {show_bytes(size)}" for name, size in sizes.items()) or "nothing"
    try:
        unused = sum(
            item.size_bytes
            for find in (
                gc.find_unreferenced_stages,
                gc.find_unreferenced_token_caches,
                gc.find_unneeded_copies,
                gc.find_unneeded_downloads,
            )
            for item in find(base)
        )
    except PreflightError as error:
        return Finding("contents", text, "warning", str(error))
    if unused:
        return Finding("contents", f"{text}; {show_bytes(unused)} are used by no run", "hint", "`nanochat-run gc`")
    return Finding("contents", text)


def _runs(base: Path) -> Iterator[Finding]:
    runs, damaged = list_runs(base), list_damaged_runs(base)
    active = [run for run in runs if run.state.status == "running" and is_locked(run.folder)]
    text = f"{several(len(runs), 'run')}, {len(active)} in progress"
    if damaged:
        names = list_names([folder.reference for folder in damaged])
        remedy = f"delete their folders in {runs_folder(base)} if you do not need them"
        yield Finding("runs", f"{text}, {len(damaged)} damaged: {names}", "warning", remedy)
    else:
        yield Finding("runs", text)
