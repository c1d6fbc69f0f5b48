"""The current run: its folder and its `run.json`, which is created or resumed, and updated as stages begin and end."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from nanochat.errors import LockError
from nanochat.plan.plan import Plan
from nanochat.recipe.load import LoadedRecipe
from nanochat.runner.store import provenance
from nanochat.runner.store.locks import is_locked, run_lock
from nanochat.runner.store.run_catalog import Run, list_runs
from nanochat.runner.store.run_state import RunState, RunStatus, RunTracking, StageStatus, entries_of, read_run
from nanochat.runner.store.verification import ModelFiles
from nanochat.storage.files import delete, exclusive, find_leftovers, write_bytes
from nanochat.storage.layout import RunFolder, StageFolder, create_run_folder, runs_folder

_KEPT_FIELDS = {"status", "folder", "output_digest", "reason", "started", "finished", "spent_seconds"}
"""Fields of a stage's entry that a resumed run keeps. The others follow the current `run` section of the recipe."""


class Session:
    """A run's folder and state. Every change is written at once, so that the folder is correct even after a kill."""

    def __init__(self, folder: RunFolder, state: RunState, base: Path) -> None:
        self.folder = folder
        self.state = state
        self._base = base
        self._write()

    def begin_stage(self, name: str, folder: StageFolder, *, reason: str) -> None:
        """Mark a stage as running."""
        begun = {"status": "running", "reason": reason, "started": time.time(), "finished": None}
        self._change_stage(name, folder, **begun, output_digest=None)

    def end_stage(
        self, name: str, folder: StageFolder, status: StageStatus, *, seconds: float, output_digest: str | None = None
    ) -> None:
        """Store how a stage ended, with the digest of its result if it has one, and add the time of this attempt."""
        spent = self.state.entry(name).spent_seconds + seconds
        ended = {"status": status, "finished": time.time(), "spent_seconds": spent}
        self._change_stage(name, folder, **ended, output_digest=output_digest)

    def use_cached(self, name: str, folder: StageFolder, output_digest: str) -> None:
        """Mark a stage as taken from the cache, unless this run computed it itself."""
        entry = self.state.entry(name)
        is_same = entry.folder == self._relative(folder) and entry.output_digest in (None, output_digest)
        is_own = is_same and entry.status not in ("waiting", "cached")
        if is_own and entry.status == "finished":
            return
        # If the process died between writing the record and `run.json`, this run computed the stage.
        status = "finished" if is_own else "cached"
        self._change_stage(name, folder, status=status, reason="", output_digest=output_digest)

    def end(self, status: RunStatus, message: str, exit_code: int) -> None:
        """Store how the run ended."""
        self.state = self.state.model_copy(update={"status": status, "message": message, "exit_code": exit_code})
        self._write()

    def _change_stage(self, name: str, folder: StageFolder, **changes: object) -> None:
        changes["folder"] = self._relative(folder)
        entries = tuple(e.model_copy(update=changes) if e.stage == name else e for e in self.state.stages)
        self.state = self.state.model_copy(update={"stages": entries})
        self._write()
        self.folder.stages.mkdir(exist_ok=True)
        link = self.folder.stages / self.state.entry(name).title
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(folder.path, self.folder.stages))

    def _relative(self, folder: StageFolder) -> str:
        return folder.path.relative_to(self._base).as_posix()

    def _write(self) -> None:
        self.state = self.state.model_copy(update={"updated": time.time()})
        self.state.write(self.folder.state)


def new_run(
    plan: Plan,
    loaded: LoadedRecipe,
    init_models: Mapping[str, ModelFiles],
    *,
    base: Path,
    tracking: RunTracking,
    command: str,
    sweep: str,
) -> RunState:
    """Return the state of a run of this process, of which no stage has begun."""
    process, now = provenance.this_process(), time.time()
    return RunState(
        name=plan.recipe_name,
        description=plan.description,
        recipe=str(loaded.path),
        overrides=loaded.overrides,
        seed=plan.seed,
        plan_digest=plan_digest(plan, init_models),
        created=now,
        updated=now,
        status="running",
        host=process.host,
        machine=process.machine,
        pid=process.pid,
        process_started=process.started,
        provenance=provenance.collect(),
        tracking=tracking,
        command=command,
        sweep=sweep,
        expectations=dict(plan.expectations),
        stages=entries_of(plan, init_models, base),
    )


@contextmanager
def open_session(state: RunState, base: Path, *, is_new: bool, is_cached: bool) -> Iterator[Session]:
    """Resume the latest run of this name if it computes the same thing, else create one. Yield its session.

    `is_new` always creates a run, because a forced stage belongs to a new run. If all stages are cached (`is_cached`),
    a resumed run keeps its provenance. The run is locked until the block ends.

    Raises:
        LockError: another process is working on a run that computes the same thing. The message names it.
    """
    with ExitStack() as held:
        # Two commands that start at the same instant choose their folders one after the other.
        with exclusive(runs_folder(base) / state.name):
            _refuse_second_process(state.name, state.plan_digest, base)
            previous = None if is_new else find_resumable_run(state.name, state.plan_digest, base)
            if previous is None:
                folder = create_run_folder(base, state.name, datetime.fromtimestamp(state.created))
            else:
                folder, state = previous.folder, _resumed(state, previous.state, is_cached=is_cached)
            held.enter_context(run_lock(folder))
            for leftover in find_leftovers(folder.path):
                delete(leftover)
            write_bytes(folder.recipe, Path(state.recipe).read_bytes())
            session = Session(folder, state, base)
        yield session


def _resumed(state: RunState, previous: RunState, *, is_cached: bool) -> RunState:
    """Return the state of a run that continues a previous one, with the progress of its stages."""
    kept = {entry.stage: entry.model_dump(include=_KEPT_FIELDS) for entry in previous.stages}
    changes = {
        "created": previous.created,
        "sweep": state.sweep or previous.sweep,
        "provenance": previous.provenance if is_cached else state.provenance,
        "stages": tuple(entry.model_copy(update=kept.get(entry.stage, {})) for entry in state.stages),
    }
    return state.model_copy(update=changes)


def _refuse_second_process(name: str, digest: str, base: Path) -> None:
    """Raise LockError if a process is working on a run of this name that computes the same thing."""
    for run in list_runs(base, name):
        if run.state.plan_digest == digest and is_in_progress(run):
            with run_lock(run.folder):  # raises, unless the process ended just now
                pass


def find_resumable_run(name: str, digest: str, base: Path) -> Run | None:
    """Return the latest run of this name if it computes the same thing and no process is working on it, else None."""
    latest = next(reversed(list_runs(base, name)), None)
    is_same = latest is not None and latest.state.plan_digest == digest and not is_in_progress(latest)
    return latest if is_same else None


def is_in_progress(run: Run) -> bool:
    """Return whether a process of any machine is working on the run. It holds the run's lock."""
    return run.state.status == "running" and is_locked(run.folder)


def close_dead_runs(runs: Iterable[Run]) -> None:
    """Mark runs as interrupted whose process died before it could do so."""
    for run in runs:
        if run.state.status != "running":
            continue
        # In a folder that several people share, this user may not be allowed to write the runs of others.
        with suppress(LockError, PermissionError), run_lock(run.folder):
            if (state := read_run(run.folder)) is None or state.status != "running":
                continue
            entries = tuple(
                entry.model_copy(update={"status": "interrupted"}) if entry.status == "running" else entry
                for entry in state.stages
            )
            changes = {"status": "interrupted", "message": "the process of the run died", "stages": entries}
            state.model_copy(update=changes).write(run.folder.state)


def plan_digest(plan: Plan, init_models: Mapping[str, ModelFiles]) -> str:
    """Return a digest that is the same for two plans if they compute the same stages from the same data."""
    content: list[object] = []
    for stage in plan.stages:
        model = init_models.get(stage.name)
        content.append([dict(stage.identity), dict(stage.source_digests), model.digest if model is not None else None])
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
