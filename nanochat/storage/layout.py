"""Where stages and runs live under the base folder, and how their small files are written.

<base>/stages/<stage>/<fp12>/        one computed stage, shared by every run that needs it
<base>/runs/<name>/<YYYYmmdd-HHMMSS>/  one run of a recipe: what was asked, the report, links to its stages
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from nanochat.storage.files import delete_scratch

FINGERPRINT_CHARS = 12


@dataclass(frozen=True)
class StageFolder:
    """The files of one stage. Only `record.json`, written last, proves that the stage is done."""

    path: Path

    @property
    def stage(self) -> str:
        """The stage's name."""
        return self.path.parent.name

    @property
    def job(self) -> Path:
        """What the child process is told."""
        return self.path / "job.json"

    @property
    def record(self) -> Path:
        """Proof of success."""
        return self.path / "record.json"

    @property
    def pending(self) -> Path:
        """Identity of a stage that is not done yet."""
        return self.path / "identity.json"

    @property
    def metrics(self) -> Path:
        """Deterministic values by step."""
        return self.path / "metrics.jsonl"

    @property
    def timings(self) -> Path:
        """Wall-clock values by step."""
        return self.path / "timings.jsonl"

    @property
    def progress(self) -> Path:
        """The child's heartbeat."""
        return self.path / "progress.json"

    @property
    def log(self) -> Path:
        """What the child printed."""
        return self.path / "log.txt"

    @property
    def error(self) -> Path:
        """The child's last words."""
        return self.path / "error.txt"

    @property
    def out(self) -> Path:
        """What the stage hands on."""
        return self.path / "out"

    @property
    def result(self) -> Path:
        """Final metrics."""
        return self.out / "result.json"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints of an unfinished stage."""
        return self.path / "checkpoints"

    @property
    def suites(self) -> Path:
        """Finished suites of an evaluation."""
        return self.path / "suites"

    @property
    def lock(self) -> Path:
        """The lock file."""
        return self.path / "lock"

    @property
    def link(self) -> Path:
        """Where in MLflow the stage is shown."""
        return self.path / "tracking.json"

    def sweep(self) -> None:
        """Delete what a process was writing when it was killed, so that it is no output; the lock must be held."""
        delete_scratch(self.path)

    def clear(self) -> None:
        """Delete everything but the lock: the record first, so that no half-deleted stage looks done."""
        self.record.unlink(missing_ok=True)
        for entry in list(self.path.iterdir()) if self.path.is_dir() else []:
            if entry == self.lock:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    path: Path

    @property
    def state(self) -> Path:
        """Status and stages, see `record.RunState`."""
        return self.path / "run.json"

    @property
    def recipe(self) -> Path:
        """The recipe file as it was."""
        return self.path / "recipe.yaml"

    @property
    def resolved(self) -> Path:
        """The recipe with `extends`, `vars` and `--set` applied."""
        return self.path / "config.yaml"

    @property
    def plan_text(self) -> Path:
        """The plan as it was printed."""
        return self.path / "plan.txt"

    @property
    def plan_json(self) -> Path:
        """The plan for programs."""
        return self.path / "plan.json"

    @property
    def report(self) -> Path:
        """The report."""
        return self.path / "report.md"

    @property
    def report_page(self) -> Path:
        """The report as one HTML file, pictures inside."""
        return self.path / "report.html"

    @property
    def plots(self) -> Path:
        """Pictures of the report."""
        return self.path / "plots"

    @property
    def stages(self) -> Path:
        """Links to the stage folders."""
        return self.path / "stages"

    @property
    def link(self) -> Path:
        """Where in MLflow the run is shown."""
        return self.path / "tracking.json"


def stage_folder(base: Path, stage: str, fingerprint: str) -> StageFolder:
    """Return the folder of a stage with this fingerprint; it need not exist."""
    return StageFolder(base / "stages" / stage / fingerprint[:FINGERPRINT_CHARS])


def stage_folders(base: Path) -> Iterator[StageFolder]:
    """Yield every stage folder under the base, sorted."""
    for path in sorted((base / "stages").glob("*/*")):
        if path.is_dir():
            yield StageFolder(path)


def run_folders(base: Path, name: str | None = None) -> list[RunFolder]:
    """Return the run folders, of one name or of all, oldest first."""
    found = (base / "runs").glob(f"{name or '*'}/*/run.json")
    return [RunFolder(path.parent) for path in sorted(found, key=lambda p: (p.parent.name, str(p)))]


def create_run_folder(base: Path, name: str, now: datetime) -> RunFolder:
    """Create and return a run folder named after the time; a second one in the same second gets `-2`."""
    stamp = now.strftime("%Y%m%d-%H%M%S")
    for attempt in range(1, 1000):
        path = base / "runs" / name / (stamp if attempt == 1 else f"{stamp}-{attempt}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return RunFolder(path)
    raise AssertionError(f"a thousand runs of {name} in one second")
