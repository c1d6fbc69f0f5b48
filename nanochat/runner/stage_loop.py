"""Runs the selected stages in order: takes each one from the cache, or computes it in a child process under a lock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from nanochat.errors import InterruptedRun, LockError, NanochatError, PreflightError
from nanochat.plan.plan import INIT_FROM, StagePlan
from nanochat.plan.stages import STAGES
from nanochat.runner.preflight.fetch import fetch_inputs, fetch_sources
from nanochat.runner.preflight.run_context import RunContext
from nanochat.runner.process.execute_stage import StageAttempt, execute_stage
from nanochat.runner.process.interrupts import Interrupts
from nanochat.runner.report.model_origin import ModelOrigin, describe_origin
from nanochat.runner.report.results import result_line, time_remark
from nanochat.runner.store.cleanup.checkpoint_cleanup import sweep_checkpoints
from nanochat.runner.store.locks import StageLock, claims, stage_lock
from nanochat.runner.store.needed_data import add_needed
from nanochat.runner.store.record import StageRecord
from nanochat.runner.store.session import Session
from nanochat.runner.store.stage_cache import ResolvedStage, look_up_stage, newest_step
from nanochat.runner.store.verification import files_to_load, find_damage
from nanochat.storage.integrity import FileDigest
from nanochat.storage.layout import StageFolder

_WAIT_SECONDS = 0.5


def run_stages(context: RunContext, session: Session, interrupts: Interrupts) -> dict[str, StageRecord]:
    """Run the selected stages in order and return the record of every finished stage.

    Raises NanochatError if a stage fails, is interrupted, or is locked by another run. The session says which stage.
    """
    needed = partial(add_needed, session.folder.data, base=context.request.base)
    fetch_inputs(context.to_run, context.request.base, needed, display=context.display, interrupts=interrupts)
    records: dict[str, StageRecord] = {}
    for lookup in context.lookups:
        name = lookup.stage.name
        if name in context.selected:
            if interrupts.count:
                raise InterruptedRun(_stop_line(context, f"stopped before {name}"))
            records[name] = _run_stage(context, session, interrupts, lookup.stage, records)
        elif isinstance(lookup, ResolvedStage) and lookup.record is not None:
            _check_unselected(context, lookup, lookup.record)
            session.use_cached(name, lookup.folder, lookup.record.output_digest)
            records[name] = lookup.record
    return records


def cache_line(title: str, lookup: ResolvedStage, record: StageRecord) -> str:
    """Return the line shown for a stage that is taken from the cache."""
    remark = time_remark(record)
    kept = f"; {remark}, and --force {record.stage} trains again" if remark else ""
    return f"{title}: from cache ({lookup.folder.path.name}{kept}){result_line(record)}"


def _is_loaded(context: RunContext, stage: str) -> bool:
    """Return whether a stage that is about to run loads the output of this one."""
    return any(stage in reader.upstream for reader in context.to_run)


def _check_unselected(context: RunContext, lookup: ResolvedStage, record: StageRecord) -> None:
    """Raise a PreflightError if a stage that is not selected is damaged and a selected one is about to load it."""
    name = lookup.stage.name
    damage = find_damage(lookup.folder, record, content_of=record.files) if _is_loaded(context, name) else None
    if damage is not None:
        raise PreflightError(f"{lookup.folder.path}: {damage}; select {name} too, for example with --from {name}")


def _run_stage(
    context: RunContext, session: Session, interrupts: Interrupts, stage: StagePlan, records: dict[str, StageRecord]
) -> StageRecord:
    """Return the record of a stage, from the cache or by computing it under its lock."""
    name = stage.name
    with claims(context.request.base):
        lookup = _look_up(context, stage, records)
        cached = _use_cached(context, session, lookup)
    title = session.state.entry(name).title
    if cached is not None:
        sweep_checkpoints(lookup.folder)
        return cached
    with _stage_lock(context, lookup, title, interrupts) as lock:
        if (owner := lock.taken_over_from) is not None:
            ended = f"process {owner.pid} on {owner.host}, which has ended"
            context.display.log_line(f"{title}: took over the lock of {ended}")
        lookup = _look_up(context, stage, records, is_held=True)
        if (cached := _use_cached(context, session, lookup)) is not None:
            return cached  # another run finished it while this one waited for the lock
        if (failure := context.request.failed_stages.get(lookup.folder.path)) is not None:
            raise type(failure)(f"{name}, which another cell shares, failed there: {failure}")
        record = _compute_stage(context, session, interrupts, lookup, lock, records)
        seconds = record.finished - record.started
        session.end_stage(name, lookup.folder, "finished", seconds=seconds, output_digest=record.output_digest)
    remark = time_remark(record)
    context.display.log_line(f"{title}: done{f' ({remark})' if remark else ''}{result_line(record)}")
    return record


def _use_cached(context: RunContext, session: Session, lookup: ResolvedStage) -> StageRecord | None:
    """Take a stage from the cache and return its record, or return None if it has to run."""
    if lookup.record is not None:
        session.use_cached(lookup.stage.name, lookup.folder, lookup.record.output_digest)
        title = session.state.entry(lookup.stage.name).title
        context.display.log_line(cache_line(title, lookup, lookup.record))
    return lookup.record


@contextmanager
def _stage_lock(context: RunContext, lookup: ResolvedStage, title: str, interrupts: Interrupts) -> Iterator[StageLock]:
    """Hold the lock of a stage. The cell of a sweep waits for it, because another cell may be computing the stage."""
    with ExitStack() as held:
        is_waiting = False
        while True:
            try:
                lock = held.enter_context(stage_lock(lookup.folder))
                break
            except LockError as error:
                if not context.request.is_cell:
                    raise
                if not is_waiting:
                    holder = str(error).partition(";")[0]
                    context.display.log_line(f"{title}: waits, because {holder}")
                is_waiting = True
            if interrupts.count:
                raise InterruptedRun(_stop_line(context, f"stopped while waiting for {lookup.stage.name}"))
            time.sleep(_WAIT_SECONDS)
        yield lock


def _look_up(
    context: RunContext, stage: StagePlan, records: dict[str, StageRecord], *, is_held: bool = False
) -> ResolvedStage:
    digests = {upstream: record.output_digest for upstream, record in records.items()}
    if (model := context.prepared.init_models.get(stage.name)) is not None:
        digests[INIT_FROM] = model.digest
    return look_up_stage(
        stage,
        digests,
        base=context.request.base,
        recipe_name=context.prepared.plan.recipe_name,
        is_forced=stage.name in context.forced,
        is_loaded=_is_loaded(context, stage.name),
        is_held=is_held,
    )


def _compute_stage(
    context: RunContext,
    session: Session,
    interrupts: Interrupts,
    lookup: ResolvedStage,
    lock: StageLock,
    records: dict[str, StageRecord],
) -> StageRecord:
    name, folder, base = lookup.stage.name, lookup.folder, context.request.base
    tracking = context.prepared.loaded.recipe.tracking
    session.begin_stage(name, folder, reason=lookup.reason)
    entry = session.state.entry(name)
    verb = "resumes" if lookup.action == "resume" else "runs"
    context.display.log_line(f"{entry.title}: {verb}, {lookup.reason}")
    attempt = StageAttempt(
        lookup=lookup,
        base=base,
        title=entry.title,
        upstream={stage: earlier.out for stage, earlier in session.state.folders(base).items()},
        init_model=model.folder if (model := context.prepared.init_models.get(name)) is not None else None,
        inputs=_inputs(context, session, lookup.stage, records),
        origin=_origin(context, session, records) if STAGES[name].exports else "",
        is_forced=name in context.forced,
        spent_seconds=entry.spent_seconds,
        provenance=session.state.provenance,
        environment=context.request.environment,
        command=context.request.child_command,
        system_metrics_every_seconds=tracking.system_metrics_every_seconds if tracking.kind == "mlflow" else None,
        data_notes=context.data_notes,
    )
    began = time.time()
    try:
        context.prepared.check_sources(lookup.stage)
        fetch_sources(lookup.stage, base, display=context.display, interrupts=interrupts)
        return execute_stage(attempt, lock, interrupts=interrupts, display=context.display)
    except InterruptedRun as stop:
        session.end_stage(name, folder, "interrupted", seconds=time.time() - began)
        raise InterruptedRun(_stop_line(context, f"{entry.title}: {_what_is_saved(stop, folder)}")) from None
    except BaseException as error:
        session.end_stage(name, folder, "failed", seconds=time.time() - began)
        if isinstance(error, NanochatError):
            context.request.failed_stages[folder.path] = error
        raise


def _inputs(
    context: RunContext, session: Session, stage: StagePlan, records: dict[str, StageRecord]
) -> dict[Path, FileDigest]:
    """Return the digests that the files loaded by a stage must have."""
    model = context.prepared.init_models.get(stage.name)
    inputs = dict(model.files) if model is not None else {}
    folders = session.state.folders(context.request.base)
    for name in stage.upstream:
        files = files_to_load(records[name], stage.name)
        inputs.update({folders[name].path / path: described for path, described in files.items()})
    return inputs


def _origin(context: RunContext, session: Session, records: dict[str, StageRecord]) -> str:
    """Return where the model of this run comes from, for the card of its export."""
    plan, recipe = context.prepared.plan, session.folder.resolved.read_text(encoding="utf-8")
    return describe_origin(
        ModelOrigin(name=plan.recipe_name, description=plan.description, recipe=recipe, records=dict(records))
    )


def _stop_line(context: RunContext, message: str) -> str:
    """Return the single line that an interrupted run ends with."""
    return f"{message}; continue with: {context.request.command}"


def _what_is_saved(stop: InterruptedRun, folder: StageFolder) -> str:
    """Return the last message of the stage, or, if it was killed before it could write one, the state of its folder."""
    if message := str(stop):
        # The stop line, which begins with this text, adds how to continue.
        return message.splitlines()[0].removesuffix("; the same command continues")
    step = newest_step(folder)
    if step is not None:
        return f"stopped, the checkpoint of step {step:,} is kept"
    suites = sorted(path.stem for path in folder.suites.glob("*.json"))
    return f"stopped, finished suites are kept: {', '.join(suites)}" if suites else "stopped, nothing is saved yet"
