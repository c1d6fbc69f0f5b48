"""Runs a recipe from beginning to end: cached stages are skipped, interrupted ones resumed, and a report is written.

The run folder is updated after every step, so that a later run, `nanochat-run ls` and MLflow can see how far this one
came, however its process ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from nanochat.errors import BUG, OK, ExpectationError, InterruptedRun, LockError, NanochatError, RecipeError
from nanochat.plan.stages import STAGES
from nanochat.recipe.load import LoadedRecipe
from nanochat.recipe.show import resolved_yaml
from nanochat.runner.display import Display
from nanochat.runner.preflight.hub_pins import pin_sources
from nanochat.runner.preflight.plan_report import data_warnings, plan_report_json, plan_report_text
from nanochat.runner.preflight.prepare import prepare, select_stages
from nanochat.runner.preflight.run_checks import check_all
from nanochat.runner.preflight.run_context import RunContext, RunRequest
from nanochat.runner.preflight.tracking_checks import find_tracking_problems
from nanochat.runner.process.interrupts import Interrupts
from nanochat.runner.report.results import check_expectations, metrics_by_name
from nanochat.runner.report.run_report import write_report
from nanochat.runner.stage_loop import cache_line, run_stages
from nanochat.runner.store.cleanup.checkpoint_cleanup import sweep_checkpoints
from nanochat.runner.store.locks import is_locked, stage_lock
from nanochat.runner.store.record import StageRecord
from nanochat.runner.store.run_catalog import Run, list_runs
from nanochat.runner.store.run_state import RunTracking
from nanochat.runner.store.session import (
    Session,
    close_dead_runs,
    find_resumable_run,
    new_run,
    open_session,
    plan_digest,
)
from nanochat.runner.store.stage_cache import ResolvedStage
from nanochat.runner.upload.upload_run import tracking_of, upload_rest, uploading
from nanochat.runtime import check_base_dir
from nanochat.storage.file_errors import explain_file_error, is_no_permission
from nanochat.storage.files import write_text


def run_recipe(
    loaded: LoadedRecipe, request: RunRequest, display: Display, interrupts: Interrupts | None = None
) -> Run:
    """Run the stages of a recipe that are not finished yet and return the run. `display` shows lines and progress.

    With `interrupts`, the caller handles the signals. The class of a NanochatError says how the run ended, see
    `errors`. The message of InterruptedRun is one line.
    """
    if pinned := pin_sources(loaded, request.base):
        display.log_line(pinned)
    prepared = prepare(loaded, request.base)
    if request.memory_bytes is not None:
        prepared = replace(prepared, plan=prepared.plan.within(request.memory_bytes))
    plan = prepared.plan
    selected = select_stages(plan, only=request.only, first=request.first, last=request.last)
    names = [stage.name for stage in plan.stages] if "all" in request.force else request.force
    forced = selected.intersection(names)
    context = RunContext(
        request=request,
        prepared=prepared,
        selected=selected,
        forced=forced,
        lookups=prepared.look_up_cache(forced),
        display=display,
        interrupts=interrupts,
    )
    tracking = tracking_of(prepared.loaded.recipe.tracking, request.folder)
    if prepared.problems:  # raises, and lists all other problems too: without its inputs no stage can run
        check_all(prepared, context.to_run, tracking=tracking)
    _check_selection(context)
    if context.to_run:
        check_all(prepared, context.to_run, tracking=tracking)
        if not request.is_cell:  # a cell waits for stages that other cells compute
            _check_locks(context)
            display.log_line(plan_report_text(prepared, context.lookups, selected))
    run, unmet = _run(context, tracking) if context.to_run else _finish_cached(context, tracking)
    if not request.is_cell:
        display.log_line(f"report: {run.folder.report}")
        if (command := _chat_command(run)) is not None:
            display.log_line(f"try the model: {command}")
    if unmet:
        raise ExpectationError("\n".join(unmet))
    return run


def _chat_command(run: Run) -> str | None:
    """Return the command to talk to the model of a run, None if it has none."""
    done = [entry.stage for entry in run.state.stages if entry.status in ("finished", "cached")]
    trained = [stage for stage in done if STAGES[stage].trains]
    raw = " --raw" if trained == ["pretrain"] else ""  # it continues texts, but has not learned to answer
    return f"nanochat-chat {run.state.name}{raw}" if trained else None


def _check_selection(context: RunContext) -> None:
    """Raise RecipeError if the selection leaves out a stage that has to run first."""
    actions = {lookup.stage.name: lookup.action for lookup in context.lookups}
    for stage in context.to_run:
        for name in stage.upstream:
            if name not in context.selected and actions[name] != "cached":
                raise RecipeError(
                    f"{stage.name} needs {name}, which is not finished; select it too, for example with --from {name}"
                )


def _check_locks(context: RunContext) -> None:
    """Raise LockError if another run is computing one of the stages, before a run folder is created."""
    for lookup in context.lookups:
        if isinstance(lookup, ResolvedStage) and lookup.stage in context.to_run and is_locked(lookup.folder):
            with stage_lock(lookup.folder):
                pass


def _run(context: RunContext, tracking: RunTracking) -> tuple[Run, list[str]]:
    """Run the stages and write the report. Return the run, and a message for each expectation that is not met."""
    base, display = context.request.base, context.display
    close_dead_runs(list_runs(base))
    with (
        _open(context, tracking) as session,
        context.handle_signals() as interrupts,
        uploading(session.folder, tracking, base, display, interrupts, is_cell=context.request.is_cell),
    ):
        try:
            unmet = _finish(context, session, run_stages(context, session, interrupts))
        except BaseException as error:
            _record_failure(error, session, context, with_plots=interrupts.count == 0)
            raise
        run = Run(session.folder, session.state)
        write_report(run, base)
    return run, unmet


def _record_failure(error: BaseException, session: Session, context: RunContext, *, with_plots: bool) -> None:
    """Store how the run failed and write its report. If that fails too, only show why: `error` matters more.

    Plots are left out for a user who interrupted the run and is waiting for it to end.
    """
    message, code = f"a bug: {error!r}", BUG
    known = explain_file_error(error) if isinstance(error, OSError) else error
    if isinstance(known, NanochatError):
        message, code = str(known), known.exit_code
    try:
        session.end("interrupted" if isinstance(error, InterruptedRun) else "failed", message, code)
        write_report(Run(session.folder, session.state), context.request.base, with_plots=with_plots)
    except Exception as problem:  # noqa: BLE001  (whatever it is, it must not replace the error of the stage)
        reason = f"{type(problem).__name__}: {problem}"
        context.display.log_line(f"the run's outcome and report could not be written: {reason}")


@contextmanager
def _open(context: RunContext, tracking: RunTracking) -> Iterator[Session]:
    prepared, request = context.prepared, context.request
    state = new_run(
        prepared.plan,
        prepared.loaded,
        prepared.init_models,
        base=request.base,
        tracking=tracking,
        command=request.command,
        sweep=request.sweep,
    )
    with open_session(state, request.base, is_new=bool(context.forced), is_cached=not context.to_run) as session:
        folder, shown = session.folder, (prepared, context.lookups, context.selected)
        write_text(folder.resolved, resolved_yaml(prepared.loaded))
        write_text(folder.plan_text, plan_report_text(*shown))
        write_text(folder.plan_json, json.dumps(plan_report_json(*shown), indent=1))
        yield session


def _finish(context: RunContext, session: Session, records: dict[str, StageRecord]) -> list[str]:
    """Mark the run as finished, show the expectations that are met, and return a message for each other one."""
    unmet = _check(context, records)
    session.end("finished", "; ".join(unmet), ExpectationError.exit_code if unmet else OK)
    return unmet


def _check(context: RunContext, records: dict[str, StageRecord]) -> list[str]:
    """Show the expectations that are met, and return a message for each other one.

    Expectations on stages without a record are ignored: they were not selected.
    """
    checked = check_expectations(context.prepared.plan.expectations, metrics_by_name(records))
    checked = [result for result in checked if result.metric.partition(".")[0] in records]
    for result in checked:
        if result.is_met:  # the others are in the error that ends the run
            context.display.log_line(f"expected {result}")
    return [f"expectation not met: {result.outcome}" for result in checked if not result.is_met]


def _finish_cached(context: RunContext, tracking: RunTracking) -> tuple[Run, list[str]]:
    """Do the same as `_run` with cached results, in a new folder only if no run of this name has the same stages.

    If another process works on such a run, or it may not be written, the results are only shown.
    """
    display, prepared, base, is_cell = context.display, context.prepared, context.request.base, context.request.is_cell
    if not is_cell:
        display.log_line("nothing to do: every stage is finished already")
        for warning in (*prepared.loaded.warnings(), *data_warnings(prepared)):  # no plan is shown that has them
            display.log_line(f"warning: {warning}")
    cached = [(x, x.record) for x in context.lookups if isinstance(x, ResolvedStage) and x.record is not None]
    for lookup, record in cached if not is_cell else ():
        display.log_line(cache_line(lookup.stage.name, lookup, record))
    records: dict[str, StageRecord] = {lookup.stage.name: record for lookup, record in cached}
    name, digest = prepared.plan.recipe_name, plan_digest(prepared.plan, prepared.init_models)
    previous = find_resumable_run(name, digest, base)
    computed_here = previous is not None and any(e.status != "cached" and e.folder for e in previous.state.stages)
    has_upload = computed_here or tracking.registered_name is not None
    with ExitStack() as held:
        try:
            session = held.enter_context(_open(context, tracking if has_upload else RunTracking(kind="none")))
        except (LockError, OSError) as error:
            same = _run_like(error, name, digest, base)
            display.log_line(f"this run is not recorded: {error}")
            return same, _check(context, records)
        for lookup, record in cached:
            session.use_cached(lookup.stage.name, lookup.folder, record.output_digest)
            sweep_checkpoints(lookup.folder)
        unmet = _finish(context, session, records)
        run = Run(session.folder, session.state)
        if not run.folder.report.is_file():
            write_report(run, base)
        if has_upload and tracking.kind == "mlflow":
            problems = find_tracking_problems(prepared.loaded.recipe.tracking, tracking)
            upload_rest(run, base, display, list(problems), handle_signals=context.handle_signals, is_cell=is_cell)
        elif tracking.kind == "mlflow" and not is_cell:
            display.log_line("MLflow: nothing to upload, because other runs computed all stages")
    return run, unmet


def _run_like(error: LockError | OSError, name: str, digest: str, base: Path) -> Run:
    """Return the latest run that computed the same, where no run can be written. Raises the error if there is none."""
    if isinstance(error, OSError) and not is_no_permission(error):
        raise error
    same = [run for run in list_runs(base, name) if run.state.plan_digest == digest]
    if not same:
        check_base_dir(base)
        raise error
    return same[-1]
