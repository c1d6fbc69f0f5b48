"""Builds what MLflow should show about a run, from the files in its folder. The run may have ended long ago."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nanochat.plan.describe import describe_choice
from nanochat.plan.quantities import show_bytes, show_duration, show_score
from nanochat.plan.stages import STAGES
from nanochat.runner.report.markdown import code_span, escape, join_parts, paragraphs
from nanochat.runner.report.results import result_line
from nanochat.runner.report.scores import SCORE_LEGEND, list_scores
from nanochat.runner.store.record import StageRecord, read_record
from nanochat.runner.store.run_catalog import Run, list_runs
from nanochat.runner.store.run_state import RunState, RunTracking, StageEntry, read_run
from nanochat.runner.store.session import is_in_progress
from nanochat.runner.store.verification import damage_to_read
from nanochat.runner.upload.headline import datasets_of_run, datasets_of_stage, headline_points
from nanochat.runner.upload.model_view import measurements, model_views, registration
from nanochat.runner.upload.run_tags import cached_tags, common_tags, stage_tags, time_tags
from nanochat.runner.upload.sweep_view import as_cell, report_artifacts
from nanochat.storage.layout import RunFolder, StageFolder
from nanochat.tracking.database import holds_runs
from nanochat.tracking.link import read_link
from nanochat.tracking.run_view import Artifact, RunView, Status, metric_name
from nanochat.tracking.store_address import database_path
from nanochat.tracking.view_digests import models_digest

RUN_STATUS: dict[str, Status] = {
    "running": "RUNNING",
    "finished": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}


def run_view(folder: RunFolder, base: Path) -> RunView:
    """Return how MLflow should show the run in a folder now."""
    state = read_run(folder)
    assert state is not None, f"{folder.state} cannot be read"
    ended = {name: files for name, files in state.folders(base).items() if state.entry(name).status != "running"}
    records = {name: record for name, files in ended.items() if (record := read_record(files)) is not None}
    view = RunView(
        name=state.name,
        link=folder.link,
        status=RUN_STATUS[state.status],
        description=_describe_run(state, records),
        tags={**state.tracking.tags, **common_tags(state), **cached_tags(state, base), **time_tags(records.values())},
        params={"seed": str(state.seed), **_shape_params(state)},
        metrics=_metrics(records.values()),
        points=headline_points(state, records),
        artifacts=report_artifacts(folder, folder.plan_json),
        datasets=datasets_of_run(state, records),
        stages=tuple(
            _stage_view(state, entry, files, records.get(entry.stage)) for entry, files in _computed_stages(state, base)
        ),
        models=model_views(state, base, records, tags=common_tags(state)),
        measurements=measurements(state, base, records, run_link=folder.link),
        registration=registration(state, base, records, folder=folder, tags=common_tags(state)),
        started=state.created,
        ended=None if state.status == "running" else state.updated,
    )
    return as_cell(view, state, base, tags=common_tags(state))


def pending_views(base: Path, tracking: RunTracking, *, without: RunFolder) -> list[RunView]:
    """Return the ended runs of the same store and experiment that are not uploaded completely."""
    return [
        run_view(run.folder, base)
        for run in list_runs(base)
        if run.folder != without
        and _is_unsent(run)
        and (run.state.tracking.uri, run.state.tracking.experiment) == (tracking.uri, tracking.experiment)
    ]


def _is_unsent(run: Run) -> bool:
    """Return whether a run has ended but is not uploaded completely."""
    if run.state.tracking.kind == "none" or is_in_progress(run):
        return False
    link = read_link(run.folder.link)
    return link is None or not link.is_complete or link.status != RUN_STATUS[run.state.status]


def is_in_store(run: Run, base: Path) -> bool:
    """Return whether the store of a run is known to have it and its stages. Of a server, only MLflow knows.

    Users may delete runs in MLflow, delete or move its database, or name another store.
    """
    tracking = run.state.tracking
    if _is_unsent(run) or tracking.uri is None:
        return False
    paths = [run.folder.link, *(folder.link for _, folder in _computed_stages(run.state, base))]
    links = [read_link(path) for path in paths]
    place = (tracking.uri, tracking.experiment)
    ids = [
        link.run_id for link in links if link is not None and link.is_complete and (link.uri, link.experiment) == place
    ]
    if len(ids) < len(links) or links[0] is None or links[0].models_digest != models_digest(run_view(run.folder, base)):
        return False
    database = database_path(tracking.uri)
    return database is not None and holds_runs(database, ids)


def _computed_stages(state: RunState, base: Path) -> list[tuple[StageEntry, StageFolder]]:
    """Return the stages that a run computed itself, at least in part, and their folders."""
    return [
        (entry, StageFolder(base / entry.folder))
        for entry in state.stages
        if entry.folder is not None and entry.status not in ("waiting", "cached")
    ]


def _metrics(records: Iterable[StageRecord]) -> dict[str, float]:
    """Return the results of stages by `stage/metric`, as MLflow groups them."""
    return {metric_name(f"{record.stage}.{name}"): x for record in records for name, x in record.metrics.items()}


def _stage_view(state: RunState, entry: StageEntry, folder: StageFolder, record: StageRecord | None) -> RunView:
    status: Status = RUN_STATUS[entry.status]
    tables = sorted(folder.tables.glob("*.jsonl")) if record else ()
    return RunView(
        name=entry.title,
        link=folder.link,
        status=status,
        description=_describe_stage(state, entry, record),
        tags=common_tags(state) | stage_tags(entry, folder, record),
        params=entry.params,
        streams=_sound_files(folder, record, (folder.metrics, folder.timings, folder.system)),
        # The page of a training stage has charts by step. Its results are shown on the page of the run.
        metrics=_metrics([record]) if record and not STAGES[entry.stage].trains else {},
        artifacts=_stage_artifacts(folder, record) if status != "RUNNING" else (),
        tables=_sound_files(folder, record, tables),
        datasets=datasets_of_stage(entry, record),
        started=entry.started,
        ended=entry.finished,
    )


def _shape_params(state: RunState) -> dict[str, str]:
    names = ("n_layer", "n_embd", "parameters", "tokens", "tokens_per_step")
    params = next((entry.params for entry in state.stages if "n_layer" in entry.params), {})
    return {name: params[name] for name in names if name in params}


def _stage_artifacts(folder: StageFolder, record: StageRecord | None) -> tuple[Artifact, ...]:
    files = [folder.samples, folder.result, folder.record, folder.log, folder.error]
    files = [path for path in files if path.is_file() and path.stat().st_size]
    return tuple(Artifact(path=path) for path in _sound_files(folder, record, files))


def _sound_files(folder: StageFolder, record: StageRecord | None, paths: Iterable[Path]) -> tuple[Path, ...]:
    """Return the files that are as a finished stage wrote them. The next run of the recipe writes the others again."""
    return tuple(path for path in paths if damage_to_read(folder, record, path) is None)


def _describe_run(state: RunState, records: dict[str, StageRecord]) -> str:
    scores = [f"{stage}{result_line(record)}" for stage, record in records.items() if STAGES[stage].evaluates]
    headline = f"**{escape('; '.join(scores))}**" if scores else paragraphs(state.message) or state.status
    cached = [entry.title for entry in state.stages if entry.status == "cached"]
    parts = [
        headline,
        paragraphs(state.description),
        "Learning curves, samples and costs: open `report.html` under Artifacts." if records else "",
        _list_scores(records),
        *time_tags(records.values()).values(),
        f"Command: {code_span(state.command)}",
        f"Stages taken from the cache: {escape(', '.join(cached))}." if cached else "",
        paragraphs(state.message) if scores else "",
    ]
    return join_parts(parts)


def _describe_stage(state: RunState, entry: StageEntry, record: StageRecord | None) -> str:
    if record is None:
        return f"{entry.status}: {paragraphs(entry.reason or state.message)}"
    results = result_line(record).removeprefix(": ")
    parts = [
        f"**{escape(results)}**" if results else "",
        "The model's answer to every problem: open `tables` under Artifacts." if STAGES[entry.stage].evaluates else "",
        _list_scores({entry.stage: record}),
        escape(describe_choice(record.metrics)),
        f"Time {show_duration(record.measured.seconds)} (planned {show_duration(record.planned.seconds)}), "
        f"peak memory {show_bytes(record.measured.peak_memory_bytes)} "
        f"(planned {show_bytes(record.planned.peak_memory_bytes)}), on {escape(record.device)}.",
        f"Why it ran: {escape(entry.reason)}." if entry.reason else "",
        *time_tags([record]).values(),
    ]
    return join_parts(parts)


def _list_scores(records: dict[str, StageRecord]) -> str:
    """Return a list of scores, each with what it says about the model and what the task asks."""
    lines = []
    for suite in list_scores(records):
        reading = f": {suite.reading}" if suite.reading else ""
        task = f" (task: {suite.asks})" if suite.asks else ""
        score = show_score(suite.score.value, suite.score.stderr, remark=suite.score.cuts)
        lines.append(f"- {escape(f'{suite.label} {score}{reading}{task}')}")
    return join_parts(["\n".join(lines), SCORE_LEGEND]) if lines else ""
