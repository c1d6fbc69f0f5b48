"""The stages of a run, one after another: from cache, or in a child process under the stage's lock."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nanochat.errors import InterruptedRun
from nanochat.plan.plan import INIT_FROM, StagePlan
from nanochat.runner.display import Display
from nanochat.runner.preflight.downloads import fetch_inputs
from nanochat.runner.preflight.prepare import Prepared
from nanochat.runner.process.child import COMMAND
from nanochat.runner.process.interrupts import Interrupts
from nanochat.runner.process.run_stage import execute_stage
from nanochat.runner.report.report import stage_line
from nanochat.runner.store.cache import Judgement, judge_stage, newest_step
from nanochat.runner.store.checkpoint_cleanup import sweep_checkpoints
from nanochat.runner.store.locks import StageLock, claims, stage_lock
from nanochat.runner.store.record import StageRecord, read_record
from nanochat.runner.store.session import Session
from nanochat.storage.layout import StageFolder


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What the user asked for."""

    recipe: Path
    base: Path
    folder: Path
    """The working directory, where a SQLite store goes by default."""
    command: str
    """The command that repeats or continues the run."""
    overrides: tuple[str, ...] = ()
    only: str | None = None
    first: str | None = None
    last: str | None = None
    force: tuple[str, ...] = ()
    child_command: Sequence[str] = COMMAND


@dataclass(frozen=True)
class Work:
    """What a run is made of, once judged."""

    request: RunRequest
    prepared: Prepared
    selected: frozenset[str]
    forced: frozenset[str]
    judged: Sequence[Judgement]
    display: Display


def run_stages(work: Work, session: Session, interrupts: Interrupts) -> dict[str, StageRecord]:
    """Run the selected stages in order and return the records of all that are done.

    Raises:
        NanochatError: a stage failed, was stopped, or is held by another run; the session says which.
    """
    to_run = [one.stage for one in work.judged if one.stage.name in work.selected and one.action != "cached"]
    fetch_inputs(to_run, work.request.base, display=work.display, interrupts=interrupts)
    records: dict[str, StageRecord] = {}
    for planned in work.judged:
        stage = planned.stage
        if stage.name not in work.selected:
            if planned.record is not None and planned.folder is not None:
                session.use_cached(stage.name, planned.folder)
                records[stage.name] = planned.record
            continue
        if interrupts.count:
            raise InterruptedRun(stop_line(work, f"stopped before {stage.name}"))
        records[stage.name] = _run_stage(work, session, interrupts, stage, records)
    return records


def _run_stage(
    work: Work, session: Session, interrupts: Interrupts, stage: StagePlan, records: dict[str, StageRecord]
) -> StageRecord:
    """Return the record of a stage, from cache or by running it under its lock."""
    digests = {name: record.output_digest for name, record in records.items()}
    if stage.name in work.prepared.init_digests:
        digests[INIT_FROM] = work.prepared.init_digests[stage.name]
    is_forced = stage.name in work.forced
    with claims(work.request.base):
        judgement = judge_stage(
            stage, digests, base=work.request.base, recipe_name=work.prepared.plan.recipe_name, forced=is_forced
        )
        assert judgement.folder is not None, "all inputs are known"
        if judgement.record is not None:
            session.use_cached(stage.name, judgement.folder)
    title = session.state.entry(stage.name).title
    if judgement.record is not None:
        sweep_checkpoints(judgement.folder)
        work.display.log_line(f"{title}: from cache ({judgement.folder.path.name}){stage_line(judgement.record)}")
        return judgement.record
    with stage_lock(judgement.folder) as lock:
        if lock.taken_over_from is not None:
            owner = lock.taken_over_from
            work.display.log_line(f"{title}: took over the lock of pid {owner.pid} on {owner.host}, which is gone")
        found = None if is_forced else read_record(judgement.folder)
        if found is not None:  # another run computed it while this one waited
            session.use_cached(stage.name, judgement.folder)
            return found
        record = _execute(work, session, interrupts, judgement, lock, title=title)
        session.end_stage(stage.name, judgement.folder, "finished", seconds=record.finished - record.started)
    work.display.log_line(f"{title}: done{stage_line(record)}")
    return record


def _execute(
    work: Work,
    session: Session,
    interrupts: Interrupts,
    judgement: Judgement,
    lock: StageLock,
    *,
    title: str,
) -> StageRecord:
    name, folder = judgement.stage.name, judgement.folder
    assert folder is not None, "all inputs are known"
    session.begin_stage(name, folder, reason=judgement.reason)
    work.display.log_line(f"{title}: {'resumes' if judgement.action == 'resume' else 'runs'}, {judgement.reason}")
    entries = session.state.stages
    upstream = {e.stage: StageFolder(work.request.base / e.folder).out for e in entries if e.folder is not None}
    began = time.time()
    try:
        return execute_stage(
            judgement,
            lock,
            base=work.request.base,
            title=title,
            upstream=upstream,
            init_model=work.prepared.init_models.get(name),
            is_forced=name in work.forced,
            spent_seconds=session.state.entry(name).spent_seconds,
            provenance=session.state.provenance,
            interrupts=interrupts,
            display=work.display,
            command=work.request.child_command,
        )
    except InterruptedRun as stop:
        session.end_stage(name, folder, "interrupted", seconds=time.time() - began)
        raise InterruptedRun(stop_line(work, f"{title}: {_first_words(stop, folder)}")) from None
    except BaseException:
        session.end_stage(name, folder, "failed", seconds=time.time() - began)
        raise


def stop_line(work: Work, what: str) -> str:
    """Return the one line that a stopped run ends with."""
    return f"{what}; continue with: {work.request.command}"


def _first_words(stop: InterruptedRun, folder: StageFolder) -> str:
    """Return what a stage said when it stopped, else what is kept of it, without what the line adds anyway."""
    said = str(stop)
    return said.splitlines()[0].removesuffix("; the same command continues") if said else f"stopped, {_kept(folder)}"


def _kept(folder: StageFolder) -> str:
    """Return what an attempt that was stopped at once leaves to go on from."""
    step = newest_step(folder)
    if step is not None:
        return f"the checkpoint of step {step:,} is kept"
    suites = sorted(path.stem for path in folder.suites.glob("*.json"))
    return f"kept: {', '.join(suites)}" if suites else "nothing of it is saved yet"
