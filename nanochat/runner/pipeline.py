"""A run from beginning to end: what is cached is skipped, what was stopped goes on, what fails is told.

The run folder is brought up to date after every step, so that whatever happens to this process, the next one, `ls` and
MLflow see how far it came.
"""

from __future__ import annotations

import json

from nanochat.errors import ExpectationError, InterruptedRun, NanochatError, RecipeError
from nanochat.recipe.load import load_recipe
from nanochat.recipe.show import resolved_yaml
from nanochat.runner.display import Display
from nanochat.runner.preflight.checks import check_all
from nanochat.runner.preflight.hub_pins import pin_sources
from nanochat.runner.preflight.plan_report import plan_report_json, plan_report_text
from nanochat.runner.preflight.prepare import prepare, select_stages
from nanochat.runner.process.interrupts import Interrupts
from nanochat.runner.report.expectations import check_expectations
from nanochat.runner.report.report import named_results, stage_line, write_report
from nanochat.runner.stage_loop import RunRequest, Work, run_stages
from nanochat.runner.store.cache import forced_stages
from nanochat.runner.store.checkpoint_cleanup import sweep_checkpoints
from nanochat.runner.store.locks import is_locked, stage_lock
from nanochat.runner.store.record import RunTracking, StageRecord
from nanochat.runner.store.runs import Run, list_runs
from nanochat.runner.store.session import Session, close_dead_runs, find_resumable_run, open_session, plan_digest
from nanochat.runner.upload.build_view import is_unsent
from nanochat.runner.upload.upload import finish_upload, start_upload, tracking_of
from nanochat.storage.files import write_text


def run_recipe(request: RunRequest, display: Display) -> Run:
    """Run what is not done yet of a recipe and return the run; everything worth knowing is told to `display`.

    Raises:
        NanochatError: whose class says how it ended, see `errors`. InterruptedRun's message is one line.
    """
    loaded = load_recipe(request.recipe, request.overrides)
    pinned = pin_sources(loaded, request.base)
    if pinned is not None:
        display.log_line(pinned)
    prepared = prepare(loaded, request.base)
    selected = select_stages(prepared.plan, only=request.only, first=request.first, last=request.last)
    forced = forced_stages(request.force, prepared.plan) & selected
    work = Work(request, prepared, selected, forced, prepared.judge(forced), display)
    to_run = [j for j in work.judged if j.stage.name in selected and j.action != "cached"]
    tracking = tracking_of(prepared.loaded.recipe.tracking, request.folder)
    if prepared.problems:  # with whatever else is found: then nothing is known of the cache, and nothing can run
        check_all(prepared, to_run, tracking_uri=tracking.uri)
    _refuse_gaps(work)
    if not to_run:
        return _nothing_to_do(work, tracking)
    check_all(prepared, to_run, tracking_uri=tracking.uri)
    for judgement in to_run:
        if judgement.folder is not None and is_locked(judgement.folder):
            with stage_lock(judgement.folder):
                pass
    display.log_line(plan_report_text(prepared, work.judged, selected))
    return _run(work, tracking)


def _refuse_gaps(work: Work) -> None:
    """Refuse a selection that leaves out a stage which has to run first."""
    actions = {judgement.stage.name: judgement.action for judgement in work.judged}
    for stage in work.prepared.plan.stages:
        if stage.name not in work.selected or actions[stage.name] == "cached":
            continue
        for name in stage.upstream:
            if name not in work.selected and actions[name] != "cached":
                raise RecipeError(f"{stage.name} needs {name}, which is not done; select it too, as with --from {name}")


def _run(work: Work, tracking: RunTracking) -> Run:
    base, display = work.request.base, work.display
    close_dead_runs(list_runs(base))
    session = _open(work, tracking)
    with Interrupts() as interrupts:
        uploader = start_upload(session.folder, tracking, base)
        try:
            records = run_stages(work, session, interrupts)
            unmet = _finish(work, session, records)
        except InterruptedRun as stop:
            session.end("interrupted", str(stop))
            raise
        except NanochatError as error:
            session.end("failed", str(error))
            raise
        except BaseException as error:
            session.end("failed", f"a bug: {error!r}")
            raise
        finally:
            run = Run(session.folder, session.state)
            # Whoever stopped the run waits for the end: no pictures then.
            report = write_report(run, base, with_plots=interrupts.count == 0)
            finish_upload(uploader, session.folder, display, interrupts)
    display.log_line(f"report: {report}")
    if unmet:
        raise ExpectationError("\n".join(unmet))
    return run


def _open(work: Work, tracking: RunTracking) -> Session:
    prepared, request = work.prepared, work.request
    session = open_session(
        prepared.plan,
        base=request.base,
        recipe=request.recipe,
        overrides=request.overrides,
        tracking=tracking,
        command=request.command,
        init_digests=prepared.init_digests,
        init_models=prepared.init_models,
        anew=bool(work.forced),
    )
    folder = session.folder
    write_text(folder.resolved, resolved_yaml(prepared.loaded))
    write_text(folder.plan_text, plan_report_text(prepared, work.judged, work.selected))
    write_text(folder.plan_json, json.dumps(plan_report_json(prepared, work.judged, work.selected), indent=1))
    return session


def _finish(work: Work, session: Session, records: dict[str, StageRecord]) -> list[str]:
    """Note that the run is done; show the results and return the expectations that are not met."""
    verdicts = check_expectations(work.prepared.plan.expectations, named_results(records))
    asked = [v for v in verdicts if v.metric.partition(".")[0] in records]
    for verdict in asked:
        work.display.log_line(f"expected {verdict}")
    unmet = [f"expectation not met: {verdict}" for verdict in asked if not verdict.is_met]
    session.end("finished", "; ".join(unmet))
    return unmet


def _nothing_to_do(work: Work, tracking: RunTracking) -> Run:
    """Show what is there; write a run folder only where this name has none with these stages."""
    display, prepared = work.display, work.prepared
    records: dict[str, StageRecord] = {j.stage.name: j.record for j in work.judged if j.record is not None}
    display.log_line("nothing to do: every stage is done already")
    for judgement in work.judged:
        if judgement.record is not None and judgement.folder is not None:
            display.log_line(
                f"{judgement.stage.name}: from cache ({judgement.folder.path.name}){stage_line(judgement.record)}"
            )
    digest = plan_digest(prepared.plan, prepared.init_digests)
    previous = find_resumable_run(prepared.plan.recipe_name, digest, work.request.base)
    computed_here = previous is not None and any(e.status != "cached" and e.folder for e in previous.state.stages)
    session = _open(work, tracking if computed_here else RunTracking(kind="none"))
    for judgement in work.judged:
        if judgement.folder is not None and judgement.record is not None:
            session.use_cached(judgement.stage.name, judgement.folder)
            sweep_checkpoints(judgement.folder)
    unmet = _finish(work, session, records)
    run = Run(session.folder, session.state)
    report = session.folder.report if session.folder.report.is_file() else write_report(run, work.request.base)
    if is_unsent(run):
        with Interrupts() as interrupts:
            finish_upload(
                start_upload(session.folder, tracking, work.request.base), session.folder, display, interrupts
            )
    display.log_line(f"report: {report}")
    if unmet:
        raise ExpectationError("\n".join(unmet))
    return run
