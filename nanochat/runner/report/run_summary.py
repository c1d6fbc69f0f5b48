"""The status, stages, costs and results of a run, for the list of runs and for other programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import JsonValue

from nanochat.plurals import several
from nanochat.runner.report.results import Result, check_expectations, list_results, metrics_by_name, time_remark
from nanochat.runner.report.stage_files import damaged_files, readable_folders, source_lines, stage_notes
from nanochat.runner.store.record import StageRecord, read_identity
from nanochat.runner.store.run_catalog import Run
from nanochat.runner.store.session import is_in_progress
from nanochat.runner.store.sweep_state import is_pruned

DIED = "died"
"""Status of a run that says that it is running although no process works on it."""
PRUNED = "pruned"
"""Status of the run of a cell that a search stopped early."""
UNFINISHED = {"waiting": "not run", "running": "running", "failed": "failed", "interrupted": "interrupted"}
"""How the status of a stage without a result is shown."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """A run with the records of its finished stages, as far as their results are here."""

    run: Run
    base: Path
    status: str
    """The status in its state, `DIED` or `PRUNED`."""
    records: Mapping[str, StageRecord]
    lost: Mapping[str, str]
    """Stages whose results are not here, with the reason."""

    @property
    def results(self) -> list[Result]:
        return list_results(self.records)

    @property
    def unfinished(self) -> dict[str, str]:
        """The stages that the run has not finished, and how far they came, in words such as those of `UNFINISHED`."""
        shown = dict(UNFINISHED)
        if self.status == DIED:
            shown["running"] = DIED
        if self.status == PRUNED:
            shown["interrupted"] = PRUNED
        return {entry.stage: shown[entry.status] for entry in self.run.state.stages if entry.status in shown}

    @property
    def time_remarks(self) -> dict[str, str]:
        """A remark for each stage with a horizon in wall time, which says that it is not reproducible."""
        remarks = {stage: time_remark(record) for stage, record in self.records.items()}
        return {stage: remark for stage, remark in remarks.items() if remark is not None}


def summarise(run: Run, base: Path) -> RunSummary:
    """Return the summary of a run."""
    return RunSummary(run=run, base=base, status=status_of(run, base), records=run.records(base), lost=run.lost(base))


def status_of(run: Run, base: Path) -> str:
    """Return the status of a run: that of its state, `DIED` or `PRUNED`."""
    if run.state.status == "running" and not is_in_progress(run):
        return DIED
    return PRUNED if is_pruned(run.state, base) else run.state.status


def describe_unfinished(summary: RunSummary) -> str | None:
    """Return which stages a run has not finished, why, and what continues it. None if it has finished all of them."""
    unfinished, state = summary.unfinished, summary.run.state
    if not unfinished:
        return None
    by_status: dict[str, list[str]] = {}
    for stage, status in unfinished.items():
        by_status.setdefault(status, []).append(stage)
    stages = "; ".join(f"{' and '.join(names)} {status}" for status, names in by_status.items())
    done, count = len(state.stages) - len(unfinished), several(len(state.stages), "stage")
    if summary.status == "finished":  # with `--until` or `--only`, or as a cell of a sweep that has `until`
        text = f"Only in part: {summary.run.reference} was to run {done} of {count}, without {' and '.join(unfinished)}"
        return f"{text}. Its command was `{state.command}`"
    text = f"Not finished: {summary.run.reference} ({summary.status}) has {done} of {count}: {stages}"
    if state.message:
        message = state.message.splitlines()[0].partition("; continue with:")[0]  # the command follows
        text += f". It ended with: {message}"
    return text if summary.status == "running" else f"{text}. Continue it with `{state.command}`"


def run_to_json(summary: RunSummary) -> dict[str, JsonValue]:
    """Return the facts of a run that the list of runs is made from."""
    run, state = summary.run, summary.run.state
    return {
        "run": run.reference,
        "name": state.name,
        "folder": str(run.folder.path),
        "status": summary.status,
        "created": datetime.fromtimestamp(state.created, UTC).isoformat(timespec="seconds"),
        "seed": state.seed,
        "command": state.command,
        "message": state.message,
        "is_reproducible": not summary.time_remarks,
        "stages": _stages_to_json(summary),
        "results": [asdict(result) for result in summary.results],
        "lost": dict(summary.lost),
    }


def report_to_json(summary: RunSummary) -> dict[str, JsonValue]:
    """Return the facts that the report of a run is made from. Not here: plots, samples, and metrics by step."""
    run, state, base = summary.run, summary.run.state, summary.base
    folders, damaged = readable_folders(run, base), damaged_files(run, base)
    checked = check_expectations(state.expectations, metrics_by_name(summary.records))
    notes: dict[str, JsonValue] = {stage: list(lines) for stage, lines in stage_notes(folders).items() if lines}
    return {
        **run_to_json(summary),
        "description": state.description,
        "recipe": state.recipe,
        "overrides": list(state.overrides),
        "provenance": state.provenance.model_dump(mode="json"),
        "expectations": [asdict(expectation) for expectation in checked],
        "data": list(source_lines(folders, damaged)),
        "notes": notes,
        "damaged": {str(path): damage for path, damage in damaged.items()},
        "report": str(run.folder.report) if run.folder.report.is_file() else None,
    }


def _stages_to_json(summary: RunSummary) -> list[JsonValue]:
    folders = summary.run.folders(summary.base)
    stages: list[JsonValue] = []
    for entry in summary.run.state.stages:
        folder, record = folders.get(entry.stage), summary.records.get(entry.stage)
        identity = record or (read_identity(folder) if folder is not None else None)
        stages.append(
            {
                "stage": entry.stage,
                "title": entry.title,
                "status": summary.unfinished.get(entry.stage, entry.status),
                "folder": str(folder.path) if folder is not None else None,
                "fingerprint": identity.fingerprint if identity is not None else None,
                "output_digest": record.output_digest if record else None,
                "is_reproducible": record.is_reproducible if record else None,
                "device": record.device if record else None,
                "planned": (record.planned if record else entry.planned).model_dump(mode="json"),
                "measured": record.measured.model_dump(mode="json") if record else None,
                "sources": dict(record.source_digests) if record else {},
                "mlflow_run_id": record.mlflow_run_id if record else None,
            }
        )
    return stages
