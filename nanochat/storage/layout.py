"""Names the files of a stage, a run and a model, and finds the folders of stages and runs under the base folder.

<base>/stages/<stage>/<fingerprint>/    one computed stage, shared by every run that needs it
<base>/runs/<name>/<YYYYmmdd-HHMMSS>/   one run of a recipe: its state, its report, links to its stages
<base>/sweeps/<name>/<YYYYmmdd-HHMMSS>/ one sweep of a recipe: which runs belong to it, and its report

The runner and the stage's child process exchange everything through the files of a stage folder, so both take the names
from here. Not here: what the files contain.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from nanochat.storage.files import delete_scratch, sync

FINGERPRINT_CHARS = 12
CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE = "config.json", "model.safetensors", "tokenizer.model"
MODEL_FILES = (CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE)
"""The files of a model folder."""
MODEL_FOLDER = "model"
RUN_STAGES = "stages"
"""The folder in a run's folder with a link to each stage, called NUMBER-STAGE."""
OPTIMIZER_FILE = "optimizer.safetensors"
SAMPLES_FILE = "samples.md"
ANSWERS_TABLE = "answers"
"""The table of answers that a stage adds to while it trains."""
RESULT_FILE = "result.json"
_CHECKPOINT_NAME = re.compile(r"step_(\d{8,})")


class _Entry:
    """The path of a file or folder inside a stage folder or run folder, as an attribute of that folder."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def __get__(self, folder: StageFolder | _ReportFolder, owner: type) -> Path:
        return folder.path.joinpath(*self._names)


@dataclass(frozen=True)
class StageFolder:
    """The files of one stage. Only `record.json`, written last, proves that the stage is done."""

    path: Path

    # Written by the runner.
    identity = _Entry("identity.json")  # what the fingerprint of an unfinished stage was made of
    job = _Entry("job.json")  # what the child process is to do
    record = _Entry("record.json")
    lock = _Entry("lock")
    link = _Entry("tracking.json")  # the MLflow run that shows the stage
    model_link = _Entry("logged_model.json")  # the logged model of MLflow that shows its model
    system = _Entry("system.jsonl")  # how busy the machine was while the stage ran
    # Written by the child process.
    log = _Entry("log.txt")  # its standard output and error
    progress = _Entry("progress.json")  # its heartbeat
    error = _Entry("error.txt")  # the message of the error that ended it
    metrics = _Entry("metrics.jsonl")  # values by step that are the same in every run of the same code
    sources = _Entry("sources.json")  # the files read from each source
    timings = _Entry("timings.jsonl")  # values by step that depend on the clock and the machine
    checkpoints = _Entry("checkpoints")  # deleted once the stage is done
    suites = _Entry("suites")  # a result for each finished suite of an evaluation
    # Between the processes that train one stage together.
    stop = _Entry("stop")  # its existence asks all of them to save and stop
    exit_codes = _Entry("exit_codes")  # a file with the exit code of each process that ended by itself
    # Written by the child process; later stages read it.
    out = _Entry("out")
    result = _Entry("out", RESULT_FILE)  # the final metrics, written last
    result_timings = _Entry("out", "timings.json")
    samples = _Entry("out", SAMPLES_FILE)
    tables = _Entry("out", "tables")  # an evaluation's records, one file for each suite
    model = _Entry("out", MODEL_FOLDER)
    optimizer = _Entry("out", OPTIMIZER_FILE)  # the optimizer's moments, for a stage that starts from the model

    @property
    def stage(self) -> str:
        return self.path.parent.name

    def suite(self, name: str) -> Path:
        """Return the file with the result of a finished suite."""
        return self.suites / f"{name}.json"

    def table(self, suite: str) -> Path:
        """Return the file with a suite's records."""
        return self.tables / f"{suite}.jsonl"

    def result_files(self) -> list[Path]:
        """Return the files that a finished stage is recorded with: its output, series, sources and suites."""
        single = [self.metrics, self.timings, self.system, self.sources]
        found = [*self.out.rglob("*"), *self.suites.glob("*"), *single]
        return sorted(path for path in found if path.is_file())

    def delete_scratch(self) -> None:
        """Delete the unfinished files of a killed process, so that they do not count as output. Needs the lock."""
        delete_scratch(self.path)

    def forget(self) -> None:
        """Delete the record, so that the stage counts as unfinished, also after a power cut."""
        if self.record.exists():
            self.record.unlink()
            sync(self.path)

    def clear(self) -> None:
        """Delete everything but the lock: the record first, so that no half-deleted stage looks done."""
        self.forget()
        for entry in list(self.path.iterdir()) if self.path.is_dir() else []:
            if entry == self.lock:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)


@dataclass(frozen=True)
class _ReportFolder:
    """The files that the folders of runs and of sweeps have in common."""

    path: Path

    lock = _Entry("lock")  # held by the process that works on the run, or by those that run cells of the sweep
    recipe = _Entry("recipe.yaml")  # the recipe file as it was
    resolved = _Entry("config.yaml")  # the recipe with `extends`, `vars` and `--set` applied
    plan_text = _Entry("plan.txt")
    report = _Entry("report.md")
    report_page = _Entry("report.html")  # the report as one HTML file with its pictures
    plots = _Entry("plots")  # the report's pictures
    link = _Entry("tracking.json")  # the MLflow run that shows this run or sweep

    @property
    def reference(self) -> str:
        """NAME/TIME, by which commands find the run or the sweep."""
        return f"{self.path.parent.name}/{self.path.name}"


@dataclass(frozen=True)
class RunFolder(_ReportFolder):
    """The files of one run."""

    state = _Entry("run.json")
    plan_json = _Entry("plan.json")
    stages = _Entry(RUN_STAGES)  # links to the stage folders
    data = _Entry("data.json")  # the folders with downloads and converted copies that it reads


@dataclass(frozen=True)
class SweepFolder(_ReportFolder):
    """The files of one sweep."""

    state = _Entry("sweep.json")


def checkpoint_folder(root: Path, step: int) -> Path:
    """Return the folder of the checkpoint after `step` optimizer steps, for example `step_00000123`."""
    return root / f"step_{step:08d}"


def list_checkpoints(root: Path) -> dict[int, Path]:
    """Return the checkpoint folders under `root` by step. They may be damaged."""
    paths = root.iterdir() if root.is_dir() else ()
    return {int(match[1]): path for path in paths if (match := _CHECKPOINT_NAME.fullmatch(path.name)) and path.is_dir()}


def stages_folder(base: Path) -> Path:
    """Return the folder that holds `<stage>/<fingerprint>` for every stage."""
    return base / "stages"


def runs_folder(base: Path) -> Path:
    """Return the folder that holds `<name>/<time>` for every run."""
    return base / "runs"


def sweeps_folder(base: Path) -> Path:
    """Return the folder that holds `<name>/<time>` for every sweep."""
    return base / "sweeps"


def stage_folder(base: Path, stage: str, fingerprint: str) -> StageFolder:
    """Return the folder of a stage with this fingerprint; it need not exist."""
    return StageFolder(stages_folder(base) / stage / fingerprint[:FINGERPRINT_CHARS])


def stage_folders(base: Path) -> Iterator[StageFolder]:
    """Yield every stage folder under the base folder, sorted by path."""
    for path in sorted(stages_folder(base).glob("*/*")):
        if path.is_dir():
            yield StageFolder(path)


def run_folders(base: Path, name: str | None = None) -> list[RunFolder]:
    """Return the run folders of one name, or of all names, sorted by their time. Their state may be damaged or missing.

    A folder without a state and without links to stages was given up before its run began, and is left out.
    """
    signs = (RunFolder(Path()).state, RunFolder(Path()).stages)
    paths = {path.parent for sign in signs for path in runs_folder(base).glob(f"{name or '*'}/*/{sign}")}
    return [RunFolder(path) for path in sorted(paths, key=lambda path: (path.name, str(path)))]


def sweep_folders(base: Path, name: str | None = None) -> list[SweepFolder]:
    """Return the sweep folders of one name, or of all names, sorted by their time."""
    paths = {state.parent for state in sweeps_folder(base).glob(f"{name or '*'}/*/{SweepFolder(Path()).state}")}
    return [SweepFolder(path) for path in sorted(paths, key=lambda path: (path.name, str(path)))]


def create_run_folder(base: Path, name: str, now: datetime) -> RunFolder:
    """Create and return a run folder named after the time; a second one in the same second gets `-2`."""
    return RunFolder(_create_folder(runs_folder(base) / name, now))


def create_sweep_folder(base: Path, name: str, now: datetime) -> SweepFolder:
    """Create and return a sweep folder; it is named as a run folder is."""
    return SweepFolder(_create_folder(sweeps_folder(base) / name, now))


def _create_folder(parent: Path, now: datetime) -> Path:
    stamp = now.strftime("%Y%m%d-%H%M%S")
    for attempt in range(1, 1000):
        path = parent / (stamp if attempt == 1 else f"{stamp}-{attempt}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise AssertionError(f"a thousand folders in {parent} in one second")
