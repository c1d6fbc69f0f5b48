"""A run as MLflow should show it, built from the run's folder alone: of this run or of one that ended long ago."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import psutil

from nanochat.plan.quantities import show_bytes, show_duration, show_score
from nanochat.plan.stages import evaluation_stages, training_stages
from nanochat.runner.report.report import result_line
from nanochat.runner.report.scores import list_suites
from nanochat.runner.store.record import RunState, StageEntry, StageRecord, read_record, read_run
from nanochat.runner.store.runs import Run, list_runs
from nanochat.runner.store.session import is_in_progress
from nanochat.storage.layout import RunFolder, StageFolder
from nanochat.tracking.link import read_link
from nanochat.tracking.run_view import Artifact, Dataset, RunView, Status
from nanochat.tracking.stale import HOST_TAG, PID_TAG, STARTED_TAG

_RUN_STATUS: dict[str, Status] = {
    "running": "RUNNING",
    "finished": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}


def run_view(folder: RunFolder, base: Path) -> RunView:
    """Return how the run in a folder should look in MLflow now."""
    state = read_run(folder)
    assert state is not None, f"{folder.state} was written by this run"
    records = {entry.stage: record for entry in state.stages if (record := _record(entry, base)) is not None}
    return RunView(
        name=state.name,
        link=folder.link,
        status=_RUN_STATUS[state.status],
        description=_describe_run(state, records),
        tags={**_common_tags(state), **_cached_tags(state, base), **state.tracking.tags},
        params={"seed": str(state.seed), **_shape_params(state)},
        metrics=run_metrics(records.values()),
        artifacts=_run_artifacts(folder),
        stages=tuple(_stage_view(state, entry, base) for entry in state.stages if _is_own(entry)),
        started=state.created,
        ended=None if state.status == "running" else state.updated,
    )


def pending_views(base: Path, uri: str, experiment: str, *, without: RunFolder) -> list[RunView]:
    """Return the ended runs of the same store and experiment that were not sent wholly."""
    return [
        run_view(run.folder, base)
        for run in list_runs(base)
        if run.folder != without and is_unsent(run) and _goes_to(run.state, uri, experiment)
    ]


def is_unsent(run: Run) -> bool:
    """Return whether an ended run has something that its MLflow store does not show."""
    if run.state.tracking.kind == "none" or is_in_progress(run.state):
        return False
    link = read_link(run.folder.link)
    return link is None or not link.is_complete or link.status != _RUN_STATUS[run.state.status]


def run_metrics(records: Iterable[StageRecord]) -> dict[str, float]:
    """Return the results of all stages, named `stage/metric`."""
    return {f"{record.stage}/{name}": value for record in records for name, value in record.metrics.items()}


def _goes_to(state: RunState, uri: str, experiment: str) -> bool:
    return (state.tracking.uri, state.tracking.experiment) == (uri, experiment)


def _is_own(entry: StageEntry) -> bool:
    return entry.status not in ("waiting", "cached") and entry.folder is not None


def _record(entry: StageEntry, base: Path) -> StageRecord | None:
    return read_record(StageFolder(base / entry.folder)) if entry.folder and entry.status != "running" else None


def _stage_view(state: RunState, entry: StageEntry, base: Path) -> RunView:
    assert entry.folder is not None, "a stage of its own has a folder"
    folder = StageFolder(base / entry.folder)
    record = _record(entry, base)
    status: Status = _RUN_STATUS[entry.status]
    tables = tuple(sorted((folder.out / "tables").glob("*.jsonl"))) if record else ()
    return RunView(
        name=entry.title,
        link=folder.link,
        status=status,
        description=_describe_stage(state, entry, record),
        tags=_common_tags(state) | _stage_tags(entry, folder, record),
        params=entry.params,
        streams=(folder.metrics, folder.timings),
        # A training stage's page has charts of its metrics by step; the run's page shows its results.
        metrics=run_metrics([record]) if record and entry.stage not in training_stages() else {},
        artifacts=_stage_artifacts(folder) if status != "RUNNING" else (),
        tables=tables,
        datasets=_datasets(entry, record),
        started=entry.started,
        ended=entry.finished,
    )


def _common_tags(state: RunState) -> dict[str, str]:
    commit = state.provenance.git_commit or "unknown"
    return {
        "git_commit": commit + (" (modified)" if state.provenance.git_dirty else ""),
        "mlflow.source.name": state.recipe,
        "mlflow.source.type": "LOCAL",
        "mlflow.user": psutil.Process().username(),
        HOST_TAG: state.host,
        PID_TAG: str(state.pid),
        STARTED_TAG: str(state.process_started),
    }


def _stage_tags(entry: StageEntry, folder: StageFolder, record: StageRecord | None) -> dict[str, str]:
    tags = {"stage": entry.stage, "fingerprint": folder.path.name, "folder": str(folder.path)}
    return tags | ({"device": record.device, "output_digest": record.output_digest} if record else {})


def _cached_tags(state: RunState, base: Path) -> dict[str, str]:
    """Return a tag for each stage that was served from cache: the run that computed it, else its fingerprint."""
    folders = {e.title: StageFolder(base / e.folder) for e in state.stages if e.status == "cached" and e.folder}
    links = {title: read_link(folder.link) for title, folder in folders.items()}
    return {
        f"cached.{title}": link.run_id if (link := links[title]) else folder.path.name
        for title, folder in folders.items()
    }


def _shape_params(state: RunState) -> dict[str, str]:
    wanted = ("n_layer", "n_embd", "parameters", "tokens", "tokens_per_step")
    return {
        name: entry.params[name]
        for entry in state.stages
        if "n_layer" in entry.params
        for name in wanted
        if name in entry.params
    }


def _run_artifacts(folder: RunFolder) -> tuple[Artifact, ...]:
    top = (folder.report_page, folder.report, folder.recipe, folder.resolved, folder.plan_text, folder.plan_json)
    pictures = sorted(folder.plots.glob("*.png")) if folder.plots.is_dir() else []
    return (
        *(Artifact(path=path) for path in top if path.is_file()),
        *(Artifact(path=path, folder="plots") for path in pictures),
    )


def _stage_artifacts(folder: StageFolder) -> tuple[Artifact, ...]:
    found = [folder.out / "samples.md", folder.result, folder.record, folder.log, folder.error]
    return tuple(Artifact(path=path) for path in found if path.is_file() and path.stat().st_size)


def _datasets(entry: StageEntry, record: StageRecord | None) -> tuple[Dataset, ...]:
    digests = record.document.get("sources") if record else None
    if not isinstance(digests, dict):
        return ()
    context = "evaluation" if entry.stage in evaluation_stages() else "training"
    return tuple(
        Dataset(name=name, digest=str(digest), source=entry.sources.get(name, name), context=context)
        for name, digest in digests.items()
    )


def _describe_run(state: RunState, records: dict[str, StageRecord]) -> str:
    scores = [f"{stage}{result_line(record)}" for stage, record in records.items() if stage in evaluation_stages()]
    results = f"**{'; '.join(scores)}**" if scores else ""
    first = results or state.message or state.status
    where = "Curves, samples and costs: `report.html` under Artifacts." if records else ""
    lines = [first, f"{state.description} {where}".strip(), _read_scores(records), f"`{state.command}`"]
    cached = [entry.title for entry in state.stages if entry.status == "cached"]
    if cached:
        lines.append(f"From cache: {', '.join(cached)}.")
    if state.message and state.message != first:
        lines.append(state.message)
    return "\n\n".join(line for line in lines if line)


def _describe_stage(state: RunState, entry: StageEntry, record: StageRecord | None) -> str:
    if record is None:
        return f"{entry.status}: {entry.reason or state.message}"
    results = result_line(record).removeprefix(": ")
    measured = (
        f"{show_duration(record.measured.seconds)} (planned {show_duration(record.planned.seconds)}), "
        f"peak memory {show_bytes(record.measured.peak_memory_bytes)} "
        f"(planned {show_bytes(record.planned.peak_memory_bytes)}), {record.device}"
    )
    why = f"Why it ran: {entry.reason}." if entry.reason else ""
    tables = (
        "What the model answered, problem by problem: `tables` under Artifacts."
        if entry.stage in evaluation_stages()
        else ""
    )
    lines = (f"**{results}**" if results else "", tables, _read_scores({entry.stage: record}), measured, why)
    return "\n\n".join(line for line in lines if line)


def _read_scores(records: dict[str, StageRecord]) -> str:
    """Return a list of what each suite asked and how to read its score."""
    lines = []
    for one in list_suites(records):
        reading = ", ".join(text for text in (one.verdict, one.meaning) if text)
        lines.append(f"- {one.stage} {one.name} {show_score(one.value, one.stderr)}: {reading}" if reading else "")
    return "\n".join(line for line in lines if line)
