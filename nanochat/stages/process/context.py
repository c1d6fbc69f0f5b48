"""The context that a stage function receives: folders, metric files, the log, the heartbeat, seeds, and when to stop.

A stage is a function `run(job, context) -> StageResult`. If several processes train together, only rank 0 writes.
Not here: what a stage computes, and MLflow, which the parent process feeds from the files written here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nanochat.errors import StageError
from nanochat.plan.specs.job import Job
from nanochat.plan.specs.spec import StageName
from nanochat.plan.stages import STAGES
from nanochat.runtime import Runtime
from nanochat.stages.process.process_group import ProcessGroup
from nanochat.storage.files import write_bytes, write_text
from nanochat.storage.integrity import find_change
from nanochat.storage.layout import ANSWERS_TABLE, MODEL_FOLDER, StageFolder
from nanochat.storage.series import Series
from nanochat.terminal.output import printable

HEARTBEAT_SECONDS = 0.5
NOTE_PREFIX = "note: "
"""The parent process also shows the log lines that start with this to the user."""


@dataclass(frozen=True)
class StageResult:
    """The measurements of a stage. `metrics` repeat exactly when the same code runs again; `timings` do not."""

    metrics: dict[str, float]
    timings: dict[str, float] = field(default_factory=dict)


class StageContext:
    """The folders of a stage, and the ways in which it reports to the parent process.

    `should_stop` returns true once a signal has asked the stage to save and stop. `clock` returns seconds, of which
    only differences count.
    """

    def __init__(
        self,
        job: Job,
        *,
        base: Path,
        runtime: Runtime,
        should_stop: Callable[[], bool] = lambda: False,
        process_group: ProcessGroup = ProcessGroup(),  # noqa: B008 -- frozen
        clock: Callable[[], float] = time.monotonic,
    ):
        self.clock = clock
        self.job = job
        self.process_group = process_group
        self.base = base
        self.runtime = runtime
        self.should_stop = should_stop
        self.folder = StageFolder(Path(job.stage_dir))
        self._metrics = Series(self.folder.metrics)
        self._timings = Series(self.folder.timings)
        self.device_peak: Callable[[], int] | None = None
        """Returns the peak memory of a GPU, which the size of the process does not include."""
        self.micro_batch_size: int | None = None
        """Rows per forward pass of a stage that trains, once they are chosen. The parent records them."""
        self._checked: set[Path] = set()
        """The inputs whose content has been compared."""
        self._heartbeat_at = 0.0
        self._heartbeat: dict[str, float | str] = {"fraction": 0.0, "text": ""}

    @property
    def out(self) -> Path:
        """The folder of the stage's output, created at first use."""
        self.folder.out.mkdir(parents=True, exist_ok=True)
        return self.folder.out

    def upstream(self, *stages: StageName) -> Path | None:
        """Return the output folder of the first of `stages` that the job names, or None if it names none of them.

        Raises:
            StageError: a file in it is not as the stage wrote it.
        """
        folder = next((Path(self.job.upstream[stage]) for stage in stages if stage in self.job.upstream), None)
        if folder is not None:
            self._check_inputs(folder)
        return folder

    def require_upstream(self, stage: StageName) -> Path:
        """Return the output folder of an upstream stage, or raise a StageError if the job does not name it."""
        folder = self.upstream(stage)
        if folder is None:
            raise StageError(f"{self.job.spec.stage} needs the output of {stage}, but the job names no folder for it")
        return folder

    def model_to_start_from(self, init_from: str | None) -> Path:
        """Return the model folder of `init_from`, or else of the first upstream stage that the job names.

        Raises:
            StageError: a file is not as it was when the run began, or the job names no such stage.
        """
        if init_from is None:
            stages = STAGES[self.job.spec.stage].upstream
            return (self.upstream(*stages) or self.require_upstream(stages[-1])) / MODEL_FOLDER
        self._check_inputs(Path(init_from))
        return Path(init_from)

    def _check_inputs(self, folder: Path) -> None:
        """Compare the content of the files under a folder with the job before the stage loads them, once.

        The moments that a stage starts from lie beside its model folder.
        """
        for name, expected in self.job.inputs.items():
            path = Path(name)
            if path in self._checked or not (path.is_relative_to(folder) or path.parent == folder.parent):
                continue
            if (change := find_change(path, expected)) is not None:
                raise StageError(
                    f"{path} {change}; run the same command again, which computes it again or says what to do"
                )
            self._checked.add(path)

    def shrink_batch(self, size: int) -> int:
        """Return the size of an automatic batch, halved as often as memory has run out, but at least 1."""
        return max(1, size >> self.job.execution.batch_halvings)

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append values that every run of this job repeats exactly: loss, learning rate, bpb."""
        if self.process_group.is_writer:
            self._metrics.append(step, metrics)

    def log_timings(self, step: int, values: Mapping[str, float]) -> None:
        """Append values that depend on the clock or the machine: seconds, tokens per second, memory."""
        if self.process_group.is_writer:
            self._timings.append(step, values)

    def logged_metrics(self, step: int) -> dict[str, float]:
        """Return the metrics that were logged at a step; none in a process that logs nothing."""
        return self._metrics.at(step) if self.process_group.is_writer else {}

    def logged_values(self, name: str) -> list[float]:
        """Return all logged values of a metric, in order; none in a process that logs nothing."""
        return self._metrics.values(name) if self.process_group.is_writer else []

    def logged_timings(self, name: str) -> list[float]:
        """Return all logged values of a timing, in order; none in a process that logs nothing."""
        return self._timings.values(name) if self.process_group.is_writer else []

    def copy_progress(self, checkpoint: Path) -> None:
        """Copy the files that grow during training, such as the two metric files, into a checkpoint."""
        for path in self._growing_files():
            if path.exists():
                write_bytes(checkpoint / path.name, path.read_bytes(), durable=False)

    def restore_progress(self, checkpoint: Path | None) -> None:
        """Replace these files by the copies in a checkpoint, or delete them for a fresh start (None)."""
        for path in self._growing_files() if self.process_group.is_writer else ():
            if checkpoint is not None and (copy := checkpoint / path.name).exists():
                write_bytes(path, copy.read_bytes(), durable=False)
            else:
                path.unlink(missing_ok=True)

    def _growing_files(self) -> tuple[Path, ...]:
        return self.folder.metrics, self.folder.timings, self.folder.samples, self.folder.table(ANSWERS_TABLE)

    def write_result(self, result: StageResult) -> None:
        """Write `out/timings.json` and, last, `out/result.json`, which completes the stage."""
        write_text(self.folder.result_timings, json.dumps(result.timings, indent=1))
        write_text(self.folder.result, json.dumps({"metrics": result.metrics}, indent=1))

    def report_progress(self, fraction: float, text: str) -> None:
        """Update the progress that the parent shows, at most twice a second."""
        now = time.monotonic()
        if now - self._heartbeat_at < HEARTBEAT_SECONDS and fraction < 1:
            return
        self._heartbeat_at = now
        self._heartbeat = {"fraction": min(max(fraction, 0.0), 1.0), "text": text}
        self.write_heartbeat()

    def write_heartbeat(self) -> None:
        """Write the last progress again, with the current time and peak device memory.

        A failure, such as a full disk, is ignored: only the display of the parent suffers.
        """
        if not self.process_group.is_writer:
            return
        beat = {**self._heartbeat, "time": time.time(), "pid": os.getpid()}
        if self.device_peak is not None:
            beat["peak_memory_bytes"] = self.device_peak()
        if self.micro_batch_size is not None:
            beat["micro_batch_size"] = self.micro_batch_size
        with contextlib.suppress(OSError):
            write_text(self.folder.progress, json.dumps(beat), durable=False)

    def log_line(self, text: str) -> None:
        """Write a line to the stage's log, which is the output of the process."""
        if self.process_group.is_writer:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()

    def notify_user(self, text: str) -> None:
        """Write a line to the log that the parent also shows to the user. Line ends in file names are escaped."""
        self.log_line(NOTE_PREFIX + "\\n".join(printable(text).splitlines()))


def derive_seed(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for one purpose, such as `derive_seed(42, "pretrain", "init")`.

    Different names give unrelated seeds, so adding or removing a stage does not change what other stages draw.
    """
    text = "/".join(["nanochat", str(seed), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def indented(text: str) -> str:
    """Return text as an indented Markdown code block, which no line of the text can end.

    Control characters become visible escapes. An empty line must precede the block.
    """
    return "\n".join(f"    {line}" for line in printable(text).splitlines())
