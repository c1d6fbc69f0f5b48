"""Find the runs on this machine, a run by its name, and the model that a name refers to."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nanochat.errors import RecipeError
from nanochat.plan.stages import training_stages
from nanochat.runner.store.record import RunState, StageRecord, read_record, read_run
from nanochat.storage.layout import (
    CONFIG_FILE,
    MODEL_FOLDER,
    WEIGHTS_FILE,
    RunFolder,
    StageFolder,
    run_folders,
    runs_folder,
)


@dataclass(frozen=True)
class Run:
    """A run on disk."""

    folder: RunFolder
    state: RunState

    @property
    def reference(self) -> str:
        return f"{self.folder.path.parent.name}/{self.folder.path.name}"

    def records(self, base: Path) -> dict[str, StageRecord]:
        """Return the records of the finished stages, in the order of the run."""
        folders = self.state.folders(base).items()
        return {stage: record for stage, folder in folders if (record := read_record(folder)) is not None}


def list_runs(base: Path, name: str | None = None) -> list[Run]:
    """Return the readable runs, of one recipe name or of all, oldest first.

    What counts is when they were created. The names of their folders hold the local time of another machine, perhaps.
    """
    runs = [Run(folder, state) for folder in run_folders(base, name) if (state := read_run(folder)) is not None]
    return sorted(runs, key=lambda run: run.state.created)


def find_run(reference: str, base: Path) -> Run:
    """Return the run that a reference names: a folder, NAME (its latest run) or NAME/TIME."""
    folder = RunFolder(Path(reference))
    if folder.state.is_file() and (state := read_run(folder)) is not None:
        return Run(RunFolder(folder.path.resolve()), state)
    runs = list_runs(base)
    name, _, time = reference.strip("/").partition("/")
    matching = [run for run in runs if run.folder.path.parent.name == name and time in ("", run.folder.path.name)]
    if matching:
        return matching[-1]
    raise RecipeError(_no_such_run(reference, runs, base))


def resolve_model(reference: str, base: Path, *, prefer: Sequence[str] | None = None) -> Path:
    """Return the model folder that a reference names: a model, checkpoint or stage folder, or a run.

    If a run has several models, the first finished stage in `prefer` wins; default: the stage that trained last. The
    message of the RecipeError for an unknown model lists the runs on this machine.
    """
    path = Path(reference).expanduser()
    for candidate in (path, path / MODEL_FOLDER, StageFolder(path).model):
        is_whole = all((candidate / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE))
        if is_whole or StageFolder(candidate.parent.parent).record.is_file():  # whoever loads it names what is missing
            return candidate.resolve()
    run = _latest_with_model(reference, base)
    records, folders = run.records(base), run.state.folders(base)
    for stage in prefer or reversed(training_stages()):
        if stage in records:
            return folders[stage].model
    raise RecipeError(
        f"the run {run.reference} has no trained model yet (status: {run.state.status}); "
        f"finish it with `{run.state.command}`"
    )


def _latest_with_model(reference: str, base: Path) -> Run:
    """Return the run that a reference names. For a bare name, return the latest run that has a model."""
    latest = find_run(reference, base)
    if "/" in reference:
        return latest
    for run in reversed(list_runs(base, reference)):
        if any(stage in run.records(base) for stage in training_stages()):
            return run
    return latest


def _no_such_run(reference: str, runs: list[Run], base: Path) -> str:
    names = list(dict.fromkeys(run.folder.path.parent.name for run in runs))
    if not names:
        return (
            f"no run `{reference}`: there are none under {runs_folder(base)} yet; start one with `nanochat-run RECIPE`"
        )
    close = difflib.get_close_matches(reference, names, n=1)
    hint = f"did you mean `{close[0]}`? " if close else ""
    return f"no run or model `{reference}`; {hint}runs here: {', '.join(sorted(names))} (`nanochat-run ls`)"
