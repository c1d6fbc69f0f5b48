"""What a stage gets from its process: folders, metric files, the heartbeat, and when to stop.

A stage is a function `run(job, context) -> StageResult`. Nothing here knows what a stage computes, or MLflow: the
parent process reads the files that are written here. Of several processes that train together only one writes.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nanochat.errors import StageError
from nanochat.plan.specs import Job, StageName
from nanochat.runtime import Runtime
from nanochat.stages.process.group import World
from nanochat.storage.series import Series

HEARTBEAT_SECONDS = 0.5
NOTE = "note: "
"""Begins a line of the log that the parent also shows to whoever started the run."""


@dataclass(frozen=True)
class StageResult:
    """What a stage measured. `metrics` are the same on every machine run of the same code; `timings` are not."""

    metrics: dict[str, float]
    timings: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SeriesSizes:
    """How much of the metric files belongs to a checkpoint, in bytes."""

    metrics: int
    timings: int


class StageContext:
    """A stage's folders and channels to the outside.

    Args:
        job: what the process was told.
        base: the base folder of caches.
        runtime: what `runtime.prepare` chose.
        should_stop: true once a signal asked to save and stop.
        world: the processes that run this stage together.
    """

    def __init__(
        self,
        job: Job,
        *,
        base: Path,
        runtime: Runtime,
        should_stop: Callable[[], bool] = lambda: False,
        world: World = World(),  # noqa: B008 -- frozen
    ):
        self.job = job
        self.world = world
        self.base = base
        self.runtime = runtime
        self.should_stop = should_stop
        self.folder = Path(job.stage_dir)
        self._metrics = Series(self.folder / "metrics.jsonl")
        self._timings = Series(self.folder / "timings.jsonl")
        self.device_peak: Callable[[], int] | None = None
        """Largest size of the device's memory so far, where the process's own size does not say it (a GPU)."""
        self._last_beat = 0.0
        self._beat: dict[str, float | str] = {"fraction": 0.0, "text": ""}

    @property
    def out(self) -> Path:
        """The folder of what the stage hands on; created at first use."""
        path = self.folder / "out"
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.folder / "checkpoints"

    def upstream(self, *stages: StageName) -> Path | None:
        """Return the output folder of the first of `stages` that this stage reads, or None."""
        found = (self.job.upstream[stage] for stage in stages if stage in self.job.upstream)
        return next((Path(folder) for folder in found), None)

    def require(self, stage: StageName) -> Path:
        """Return the output folder of an upstream stage.

        Raises:
            StageError: the job does not name it.
        """
        folder = self.upstream(stage)
        if folder is None:
            raise StageError(f"{self.job.spec.stage} needs the output of {stage}, and the job names none")
        return folder

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append values that are the same in every run of this job: loss, rates, bpb."""
        if self.world.is_writer:
            self._metrics.append(step, metrics)

    def log_timing(self, step: int, values: Mapping[str, float]) -> None:
        """Append values of the clock or the machine: seconds, tokens per second, memory."""
        if self.world.is_writer:
            self._timings.append(step, values)

    def series_sizes(self) -> SeriesSizes:
        """Flush both metric files to disk and return their sizes, for a checkpoint to remember."""
        return SeriesSizes(metrics=self._metrics.sync(), timings=self._timings.sync())

    def rewind(self, sizes: SeriesSizes) -> None:
        """Cut both metric files back to what belongs to a checkpoint; to nothing at a fresh start."""
        if self.world.is_writer:
            self._metrics.truncate(sizes.metrics)
            self._timings.truncate(sizes.timings)

    def write_result(self, result: StageResult) -> None:
        """Write `out/timings.json` and, last, `out/result.json`, which completes the stage."""
        write_atomically(self.out / "timings.json", json.dumps(result.timings, indent=1))
        write_atomically(self.out / "result.json", json.dumps({"metrics": result.metrics}, indent=1))

    def progress(self, fraction: float, text: str) -> None:
        """Renew the heartbeat that the parent shows, at most twice a second."""
        now = time.monotonic()
        if now - self._last_beat < HEARTBEAT_SECONDS and fraction < 1:
            return
        self._last_beat = now
        self._beat = {"fraction": min(max(fraction, 0.0), 1.0), "text": text}
        self.beat()

    def beat(self) -> None:
        """Write the heartbeat as it is, with the time and the device's peak memory of now."""
        if not self.world.is_writer:
            return
        beat = {**self._beat, "time": time.time(), "pid": os.getpid()}
        if self.device_peak is not None:
            beat["peak_memory_bytes"] = self.device_peak()
        write_atomically(self.folder / "progress.json", json.dumps(beat), durable=False)

    def say(self, text: str) -> None:
        """Write a line to the stage's log (the process's output)."""
        if self.world.is_writer:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()

    def tell(self, text: str) -> None:
        """Write a line to the log that is also shown where the run was started."""
        self.say(f"{NOTE}{text}")


def derive_seed(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for one purpose, such as `derive_seed(42, "pretrain", "init")`.

    Different names give unrelated seeds, so adding or removing a stage does not change what other stages draw.
    """
    text = "/".join(["nanochat", str(seed), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def indented(text: str) -> str:
    """Return text as an indented Markdown code block, which no line of the text can end."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def write_atomically(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a small file so that a reader sees the old or the new text whole; `durable` also survives a power cut."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("w", encoding="utf-8") as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
