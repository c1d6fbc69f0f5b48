"""Computes a stage: prepares its folder, runs the child process, and writes the record that proves it finished."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nanochat.data.sources.source_downloads import resolve_revision
from nanochat.errors import StageError
from nanochat.plan.fitting import is_shared
from nanochat.plan.quantities import show_duration
from nanochat.plan.specs.job import Job
from nanochat.plan.stages import STAGES
from nanochat.runner.display import Display
from nanochat.runner.process.child import COMMAND, LAUNCHER, ChildExit, Heartbeat, run_child
from nanochat.runner.process.exit_status import StageBugError, describe_halving, halve_batch, raise_for_exit
from nanochat.runner.process.interrupts import Interrupts
from nanochat.runner.store import record as records
from nanochat.runner.store.cleanup.checkpoint_cleanup import delete_checkpoints
from nanochat.runner.store.last_batch import last_halvings
from nanochat.runner.store.locks import StageLock
from nanochat.runner.store.record import Cost, Provenance, StageRecord
from nanochat.runner.store.stage_cache import ResolvedStage, newest_step
from nanochat.runner.store.suite_cache import reuse_suites
from nanochat.runtime import BASE_DIR
from nanochat.storage.files import folder_bytes, write_text
from nanochat.storage.integrity import FileDigest
from nanochat.storage.layout import StageFolder
from nanochat.tracking.link import read_link
from nanochat.tracking.system_metrics import measuring_system

_SILENT_SECONDS = 60.0
"""The progress line warns about a heartbeat older than this: the stage may be in one long step, or stuck."""
_FRACTION_FOR_ESTIMATE = 0.02
"""The remaining time is shown once this share of the stage is done."""


@dataclass(frozen=True, kw_only=True)
class StageAttempt:
    """One attempt to compute a stage."""

    lookup: ResolvedStage
    base: Path
    title: str
    upstream: Mapping[str, Path]
    """The output folder of each finished stage."""
    init_model: Path | None
    """The folder with the initial weights, if the stage has `init_from`."""
    inputs: Mapping[Path, FileDigest]
    """The expected size, time and digest of each file that the stage loads."""
    origin: str
    """Where the model comes from, for its card; empty unless the stage exports it."""
    is_forced: bool
    spent_seconds: float
    """The time that earlier attempts took."""
    provenance: Provenance
    environment: Mapping[str, str]
    """Variables of the child's environment, besides those of this process."""
    command: Sequence[str] = COMMAND
    system_metrics_every_seconds: float | None = None
    """None to not measure the machine."""
    data_notes: set[str] = field(default_factory=set)
    """The notes on data that stages of the run have shown."""


def execute_stage(attempt: StageAttempt, lock: StageLock, *, interrupts: Interrupts, display: Display) -> StageRecord:
    """Run a stage in a child process and return its record, which is written last. Its data must be downloaded.

    If the child runs out of memory and nanochat chose its batch, another child continues with half of the batch.
    Raises the error that `exit_status.raise_for_exit` chooses if the stage failed or was interrupted.
    """
    stage, folder = attempt.lookup.stage, attempt.lookup.folder
    commits = {source.name: resolve_revision(source, base=attempt.base, offline=True) for source in stage.read_sources}
    _prepare_folder(attempt, display)
    started = time.time()
    try:
        with measuring_system(folder.system, attempt.system_metrics_every_seconds):
            child_exit = _run_with_batch_that_fits(attempt, lock, interrupts=interrupts, display=display)
        raise_for_exit(child_exit, stage, folder)
        record = _record(attempt, child_exit, started=started, commits=commits)
    except (FileNotFoundError, StageBugError) as error:
        if folder.job.is_file():
            raise
        raise StageError(f"{folder.path} was deleted or moved while {stage.name} ran") from error
    record.write(folder.record)
    delete_checkpoints(folder)
    return record


def _run_with_batch_that_fits(
    attempt: StageAttempt, lock: StageLock, *, interrupts: Interrupts, display: Display
) -> ChildExit:
    """Run the stage's child processes, each with half of the batch of the one before, and return how the last ended."""
    stage, folder, title = attempt.lookup.stage, attempt.lookup.folder, attempt.title
    job, started = _job(attempt), time.time()
    while True:
        write_text(folder.job, job.model_dump_json(indent=1))
        child_exit = run_child(
            folder,
            interrupts=interrupts,
            on_start=lock.name_child,
            on_tick=lambda progress: _show_progress(display, title, progress, time.time() - started),
            on_note=lambda note: _show_note(attempt, note, display),
            lock_descriptor=lock.descriptor,
            environment={BASE_DIR: str(attempt.base.absolute()), **attempt.environment},
            command=LAUNCHER if is_shared(stage) else attempt.command,
        )
        display.clear_progress()
        if (smaller := halve_batch(job, stage, child_exit)) is None:
            return child_exit
        display.log_line(f"{title}: {describe_halving(stage, child_exit, folder)}")
        _remove_leftovers(folder)
        job = smaller


def _prepare_folder(attempt: StageAttempt, display: Display) -> None:
    """Remove the leftovers of a killed or forced attempt, and copy suites that are already finished elsewhere."""
    folder, identity = attempt.lookup.folder, attempt.lookup.identity
    if attempt.is_forced:
        folder.clear()
    else:
        folder.forget()
        _remove_leftovers(folder)
    identity.write(folder.identity)
    reused = [] if attempt.is_forced else reuse_suites(folder, identity, attempt.base)
    if reused:
        display.log_line(f"{attempt.title}: from cache: {', '.join(reused)}")


def _remove_leftovers(folder: StageFolder) -> None:
    """Remove the unfinished files of a killed process, and the output of a stage that cannot resume."""
    folder.delete_scratch()
    if newest_step(folder) is None and not STAGES[folder.stage].evaluates:
        shutil.rmtree(folder.out, ignore_errors=True)  # a damaged stage starts over; suites check themselves


def _record(
    attempt: StageAttempt, child_exit: ChildExit, *, started: float, commits: dict[str, str | None]
) -> StageRecord:
    stage, folder = attempt.lookup.stage, attempt.lookup.folder
    files, link = records.describe_files(folder), read_link(folder.link)
    return StageRecord(
        **attempt.lookup.identity.model_dump(),
        output_digest=records.output_digest(records.files_for_downstream(stage.name, records.outputs(files))),
        files=files,
        metrics=_read_metrics(folder),
        provenance=attempt.provenance,
        device=_device(folder),
        source_commits={name: commit for name, commit in commits.items() if commit is not None},
        started=started,
        finished=time.time(),
        planned=Cost.model_validate(stage.estimate),
        measured=Cost(
            seconds=attempt.spent_seconds + time.time() - started,
            peak_memory_bytes=child_exit.peak_memory_bytes,
            micro_batch_size=child_exit.micro_batch_size,
            disk_bytes=folder_bytes(folder.path),
            suite_seconds=_read_timings(folder).get("suite_seconds"),
        ),
        tracking_uri=link.uri if link else None,
        mlflow_run_id=link.run_id if link else None,
    )


def _job(attempt: StageAttempt) -> Job:
    stage, folder = attempt.lookup.stage, attempt.lookup.folder
    init = {} if attempt.init_model is None else {"init_from": str(attempt.init_model)}
    halvings = last_halvings(stage, folder)
    return Job(
        spec=stage.spec.model_copy(update=init),
        execution=stage.execution.model_copy(update={"batch_halvings": halvings}),
        stage_dir=str(folder.path),
        upstream={name: str(attempt.upstream[name]) for name in stage.upstream},
        inputs={str(path): described for path, described in attempt.inputs.items()},
        origin=attempt.origin,
    )


def _show_note(attempt: StageAttempt, note: str, display: Display) -> None:
    """Show a note of the stage, unless it is on data and another stage of the run has shown it."""
    names = [source.name for source in attempt.lookup.stage.read_sources]
    if note.startswith(tuple(start for name in names for start in (f"{name}: ", f"source `{name}`"))):
        if note in attempt.data_notes:
            return
        attempt.data_notes.add(note)
    display.log_line(f"{attempt.title}: {note}")


def _show_progress(display: Display, title: str, progress: Heartbeat, seconds: float) -> None:
    suffix = ""
    if progress.time and (silent := time.time() - progress.time) > _SILENT_SECONDS:
        suffix = f", no heartbeat for {show_duration(silent)}"
    elif _FRACTION_FOR_ESTIMATE < progress.fraction < 1:
        suffix = f", about {show_duration(seconds / progress.fraction * (1 - progress.fraction))} left"
    display.show_progress(title, progress.fraction, f"{progress.text or 'starting'}{suffix}")


def _read_metrics(folder: StageFolder) -> dict[str, float]:
    if not folder.result.is_file():
        raise StageError(f"{folder.stage} finished but wrote no {folder.result}; its log is {folder.log}")
    return _numbers(json.loads(folder.result.read_text(encoding="utf-8")).get("metrics", {}))


def _read_timings(folder: StageFolder) -> dict[str, float]:
    """Return the timings of a stage's result, none if it wrote none."""
    if not folder.result_timings.is_file():
        return {}
    return _numbers(json.loads(folder.result_timings.read_text(encoding="utf-8")))


def _numbers(values: Mapping[str, object]) -> dict[str, float]:
    return {str(name): float(value) for name, value in values.items() if isinstance(value, (int, float))}


def _device(folder: StageFolder) -> str:
    """Return the device that the child process printed to its log (see `runtime.Runtime.describe`)."""
    devices = re.findall(r"^device: (.*)$", folder.log.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return devices[-1] if devices else "unknown"
