"""One stage from judgement to record: lock, job, child process, result."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from nanochat.errors import StageError
from nanochat.plan.plan import StagePlan
from nanochat.plan.quantities import show_duration
from nanochat.plan.sharing import is_shared
from nanochat.plan.specs import Job, TokenizerSpec
from nanochat.runner.display import Display
from nanochat.runner.preflight.downloads import fetch_sources
from nanochat.runner.process.child import COMMAND, LEADER, Ended, Progress, run_child
from nanochat.runner.process.exit_status import raise_for
from nanochat.runner.process.interrupts import Interrupts
from nanochat.runner.store.cache import Judgement
from nanochat.runner.store.checkpoint_cleanup import delete_checkpoints
from nanochat.runner.store.headline_params import cost_of
from nanochat.runner.store.locks import StageLock
from nanochat.runner.store.record import (
    Cost,
    Provenance,
    StageRecord,
    handed_on,
    output_digest,
    output_files,
    write_identity,
    write_record,
)
from nanochat.runner.store.suite_reuse import reuse_suites
from nanochat.storage.files import folder_bytes, write_text
from nanochat.storage.layout import StageFolder
from nanochat.tracking.link import read_link

_SILENT_SECONDS = 60.0
"""A heartbeat older than this is told: the stage may be in one long step, or stuck."""


def execute_stage(
    judgement: Judgement,
    lock: StageLock,
    *,
    base: Path,
    title: str,
    upstream: Mapping[str, Path],
    init_model: Path | None,
    is_forced: bool,
    spent_seconds: float,
    provenance: Provenance,
    interrupts: Interrupts,
    display: Display,
    command: Sequence[str] = COMMAND,
) -> StageRecord:
    """Run a stage in a child process and return its record, which is written last.

    Args:
        upstream: output folder of each finished stage.
        init_model: folder of the starting weights.
        spent_seconds: what earlier attempts took.

    Raises:
        NanochatError: as the child's end says (see `child.raise_for`).
    """
    stage, folder, identity = judgement.stage, judgement.folder, judgement.identity
    assert folder is not None and identity is not None, f"{stage.name} was not judged"
    commits = fetch_sources(stage, base, display=display, interrupts=interrupts)
    if is_forced:
        folder.clear()
    else:
        folder.record.unlink(missing_ok=True)
        folder.sweep()
    write_identity(folder, identity)
    taken = [] if is_forced else reuse_suites(folder, identity, base)
    if taken:
        display.log_line(f"{title}: from cache: {', '.join(taken)}")
    write_text(folder.job, _job(stage, folder, upstream, init_model).model_dump_json(indent=1))
    started = time.time()
    ended = run_child(
        folder,
        interrupts=interrupts,
        on_start=lock.name_child,
        on_tick=lambda progress: _show(display, title, progress, time.time() - started),
        on_note=lambda note: display.log_line(f"{title}: {note}"),
        lock_descriptor=lock.descriptor,
        command=LEADER if is_shared(stage) else command,
    )
    display.clear_progress()
    raise_for(ended, folder, planned_bytes=stage.estimate.peak_memory_bytes, remedy=_remedy(stage))
    record = _record(
        judgement, ended, started=started, spent_seconds=spent_seconds, provenance=provenance, commits=commits
    )
    write_record(folder, record)
    delete_checkpoints(folder)
    return record


def _record(
    judgement: Judgement,
    ended: Ended,
    *,
    started: float,
    spent_seconds: float,
    provenance: Provenance,
    commits: dict[str, str],
) -> StageRecord:
    """Return what a stage's folder says of it, now that its child has ended well."""
    stage, folder, identity = judgement.stage, judgement.folder, judgement.identity
    assert folder is not None and identity is not None, f"{stage.name} was not judged"
    files, link = output_files(folder.out), read_link(folder.link)
    return StageRecord(
        **identity.model_dump(),
        output_digest=output_digest(handed_on(stage.name, files)),
        output_files=files,
        metrics=_read_metrics(folder),
        provenance=provenance,
        device=_device(folder),
        source_commits=commits,
        started=started,
        finished=time.time(),
        planned=cost_of(stage.estimate),
        measured=Cost(
            seconds=spent_seconds + ended.seconds,
            peak_memory_bytes=ended.peak_memory_bytes,
            disk_bytes=folder_bytes(folder.path),
        ),
        tracking_uri=link.uri if link else None,
        mlflow_run_id=link.run_id if link else None,
    )


def _job(stage: StagePlan, folder: StageFolder, upstream: Mapping[str, Path], init_model: Path | None) -> Job:
    spec = stage.spec
    if init_model is not None and not isinstance(spec, TokenizerSpec):
        spec = spec.model_copy(update={"init_from": str(init_model)})
    return Job(
        spec=spec,
        execution=stage.execution,
        stage_dir=str(folder.path),
        upstream={name: str(upstream[name]) for name in stage.upstream},
    )


def _show(display: Display, title: str, progress: Progress, seconds: float) -> None:
    left = ""
    if 0.02 < progress.fraction < 1:
        left = f", about {show_duration(seconds / progress.fraction * (1 - progress.fraction))} left"
    silent = time.time() - progress.time if progress.time else 0.0
    if silent > _SILENT_SECONDS:
        left = f", no sign of life for {show_duration(silent)}"
    display.show_progress(title, progress.fraction, f"{progress.text or 'starting'}{left}")


def _remedy(stage: StagePlan) -> str:
    if stage.name == "tokenizer":
        return "set `tokenizer.max_chars` lower: so much text is held in memory"
    now = stage.execution.micro_batch_size
    if now is not None and now > 1:
        return f"set `run.micro_batch_size: {now // 2}` (now {now}), or `run.activation_checkpointing: true`"
    if now is None:
        return "set `run.micro_batch_size` (now auto) to a small number, or `run.activation_checkpointing: true`"
    return "set `run.activation_checkpointing: true`, or use a smaller model or a shorter `model.sequence_len`"


def _read_metrics(folder: StageFolder) -> dict[str, float]:
    if not folder.result.is_file():
        raise StageError(f"{folder.stage} ended well but wrote no {folder.result}; its log is {folder.log}")
    return _read_numbers(folder.result, "metrics")


def _read_numbers(path: Path, key: str) -> dict[str, float]:
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    values = content.get(key, {}) if key else content
    return {str(name): float(value) for name, value in values.items() if isinstance(value, (int, float))}


def _device(folder: StageFolder) -> str:
    """Return what the child said it ran on (`runtime.Runtime.describe`), from its log."""
    lines = folder.log.read_text(encoding="utf-8", errors="replace").splitlines() if folder.log.is_file() else []
    said = [line.removeprefix("device: ") for line in lines if line.startswith("device: ")]
    return said[-1] if said else "unknown"
