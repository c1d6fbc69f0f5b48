"""Finds the runs on this machine, a run by its name, and the model that a name refers to."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanochat.errors import PreflightError, RecipeError
from nanochat.plan.stages import training_stages
from nanochat.runner.store.record import StageRecord, read_record
from nanochat.runner.store.run_state import RunState, StageEntry, read_run
from nanochat.runner.store.verification import check_model
from nanochat.storage.layout import (
    CONFIG_FILE,
    MODEL_FOLDER,
    WEIGHTS_FILE,
    RunFolder,
    StageFolder,
    run_folders,
    runs_folder,
    sweeps_folder,
)


@dataclass(frozen=True)
class Run:
    """A run on disk."""

    folder: RunFolder
    state: RunState

    @property
    def reference(self) -> str:
        """NAME/TIME, or the path of a folder that does not lie among the runs of a base folder."""
        return self.folder.reference if self._own_base is not None else str(self.folder.path)

    @property
    def _own_base(self) -> Path | None:
        """The base folder that the run's folder lies in. None if it was moved out of one."""
        base = self.folder.path.absolute().parents[2:3]
        return base[0] if base and self.folder.path.absolute().parents[1] == runs_folder(base[0]) else None

    def bases(self, base: Path) -> list[Path]:
        """Return the base folders in which the run's stages are searched: its own one, then `base`."""
        own = self._own_base
        return [base] if own is None or own == base.absolute() else [own, base]

    def folders(self, base: Path) -> dict[str, StageFolder]:
        """Return the folder of each stage that has begun or is cached, in the order of the run.

        A folder that was copied or unpacked somewhere has its stages inside it or in the base folder around it.
        Otherwise they are searched under `base`. The folder of a stage that is nowhere does not exist.
        """
        return {entry.stage: self._locate(entry, base) for entry in self.state.stages if entry.folder is not None}

    def records(self, base: Path) -> dict[str, StageRecord]:
        """Return the records of the finished stages, in the order of the run, as far as their results are here."""
        candidates = ((stage, folder, read_record(folder)) for stage, folder in self.folders(base).items())
        return {stage: record for stage, _, record in candidates if record is not None and self._is_own(stage, record)}

    def lost(self, base: Path) -> dict[str, str]:
        """Return the stages that the run finished but whose results are not here, each with the reason."""
        records = self.records(base)
        ended = (entry for entry in self.state.stages if entry.status in ("finished", "cached"))
        return {entry.stage: self._why_lost(entry, base) for entry in ended if entry.stage not in records}

    def describe_lost(self, base: Path, stages: Collection[str]) -> str:
        """Return which of the stages are lost, where they were searched, and what to do, as text for the user."""
        reasons = [f"{stage}: {why}" for stage, why in self.lost(base).items() if stage in stages]
        searched, host = " and ".join(map(str, self.bases(base))), self.state.provenance.host
        return (
            f"results of the run {self.reference} are not here: {'; '.join(reasons)} (searched in {searched}). Copy "
            f"`stages` from the base folder in which it ran, on {host}, or set NANOCHAT_BASE_DIR to it"
        )

    def _locate(self, entry: StageEntry, base: Path) -> StageFolder:
        assert entry.folder is not None, f"{entry.stage} has not begun"
        own = [] if self._own_base is None else [self._own_base / entry.folder]
        places = [*own, self.folder.stages / entry.title, base / entry.folder]
        existing = [StageFolder(path) for path in places if path.is_dir()]
        records = ((folder, read_record(folder)) for folder in existing)
        own_results = (folder for folder, record in records if record and self._is_own(entry.stage, record))
        return next(own_results, existing[0] if existing else StageFolder(base / entry.folder))

    def _is_own(self, stage: str, record: StageRecord) -> bool:
        """Return whether a record holds the result of this run, and not one that was computed again since."""
        known = self.state.entry(stage).output_digest
        return known is None or known == record.output_digest

    def _why_lost(self, entry: StageEntry, base: Path) -> str:
        folder = self.folders(base)[entry.stage]
        if read_record(folder) is not None:
            return "computed again since, with another result"
        return f"{folder.record} is damaged" if folder.record.exists() else f"no {entry.folder}"


def list_runs(base: Path, name: str | None = None) -> list[Run]:
    """Return the readable runs, of one recipe name or of all, oldest first.

    What counts is when they were created. The names of their folders hold the local time of another machine, perhaps.
    """
    runs = [Run(folder, state) for folder in run_folders(base, name) if (state := read_run(folder)) is not None]
    return sorted(runs, key=lambda run: run.state.created)


def list_damaged_runs(base: Path) -> list[RunFolder]:
    """Return the folders of runs whose `run.json` is missing or cannot be read, sorted by their time."""
    return [folder for folder in run_folders(base) if read_run(folder) is None]


def describe_damaged_run(folder: RunFolder) -> str:
    """Return the problem with the state of a run, and its remedy, as text for the user."""
    damage = "cannot be read: it is damaged, or of a later version of nanochat"
    problem = damage if folder.state.exists() else "is missing"
    return f"{folder.state} {problem}; delete the folder {folder.path} if you do not need the run"


def find_run(reference: str, base: Path) -> Run:
    """Return the run that a reference names: a folder, NAME (its latest run) or NAME/TIME.

    A RecipeError says that there is no such run, or that it is damaged. For NAME it is raised if the latest run may be
    the damaged one.
    """
    folder = RunFolder(Path(reference))
    if folder.state.is_file() and (state := read_run(folder)) is not None:
        return Run(RunFolder(folder.path.resolve()), state)
    runs = list_runs(base)
    name, _, time = reference.strip("/").partition("/")
    matching = [run for run in runs if run.folder.path.parent.name == name and time in ("", run.folder.path.name)]
    newest = matching[-1].folder.path.name if matching else ""
    for damaged in reversed(list_damaged_runs(base)):
        is_newer = damaged.path.name > newest
        if damaged.path.parent.name == name and (damaged.path.name == time if time else is_newer):
            raise RecipeError(describe_damaged_run(damaged))
    if matching:
        return matching[-1]
    raise RecipeError(_no_such_run(reference, runs, base))


def resolve_model(reference: str, base: Path, *, prefer: Sequence[str] | None = None) -> Path:
    """Return the model folder that a reference names: a model, checkpoint or stage folder, or a run.

    If a run has several models, the first finished stage in `prefer` wins; default: the stage that trained last.

    Raises:
        RecipeError: there is no such model; the message lists the runs under `base`.
        PreflightError: the run finished the stage, but its result is not on this machine.
    """
    path = Path(reference).expanduser()
    for candidate in (path, path / MODEL_FOLDER, StageFolder(path).model):
        is_whole = all((candidate / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE))
        if is_whole or StageFolder(candidate.parent.parent).record.is_file():  # loading it reports the missing file
            return candidate.resolve()
    run = latest_with_model(reference, base)
    records, folders, lost = run.records(base), run.folders(base), run.lost(base)
    for stage in prefer or reversed(training_stages()):
        if stage in lost:  # a model of another stage is not what was asked for
            raise PreflightError(run.describe_lost(base, [stage]))
        if stage in records:
            return folders[stage].model
    raise RecipeError(
        f"the run {run.reference} has no trained model yet (status: {run.state.status}); "
        f"finish it with `{run.state.command}`"
    )


def find_model(reference: str, base: Path) -> Path:
    """Return the folder of the model that a reference names, after `check_model`. Raises as `resolve_model`."""
    folder = resolve_model(reference, base)
    check_model(folder)
    return folder


def latest_with_model(reference: str, base: Path) -> Run:
    """Return the run that a reference names. For a bare name, return the latest run that has a model."""
    latest = find_run(reference, base)
    if "/" in reference:
        return latest
    for run in reversed(list_runs(base, reference)):
        if (run.records(base).keys() | run.lost(base).keys()).intersection(training_stages()):
            return run
    return latest


def _no_such_run(reference: str, runs: list[Run], base: Path) -> str:
    folder = RunFolder(Path(reference))
    if folder.state.exists() or folder.stages.is_dir():
        return describe_damaged_run(folder)
    if Path(reference).is_dir():
        return (
            f"{reference} is neither the folder of a run (it has no {RunFolder(Path()).state}) nor that of a model (it "
            f"has no {CONFIG_FILE} and {WEIGHTS_FILE}); runs are made by `nanochat-run RECIPE`"
        )
    names = sorted({run.folder.path.parent.name for run in runs})
    if not names:
        return (
            f"no run `{reference}`: there are none under {runs_folder(base)} yet; start one with `nanochat-run RECIPE`"
        )
    if (sweeps_folder(base) / reference).is_dir():
        return (
            f"`{reference}` is a sweep of several models; name the run of one cell (`nanochat-run report {reference}` "
            "ranks them)"
        )
    close = difflib.get_close_matches(reference, names, n=1)
    hint = f"did you mean `{close[0]}`? " if close else ""
    if Path(reference).is_file():
        hint = f"a run has the `name` that is in its recipe, not that of the file; {hint}"
    return f"no run or model `{reference}` here; {hint}runs under {base}: {', '.join(names)} (`nanochat-run ls`)"
