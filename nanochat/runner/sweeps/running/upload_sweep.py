"""Upload a sweep to MLflow: a run above those of its cells, which upload themselves."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from nanochat.plan.describe import several
from nanochat.runner.display import Display
from nanochat.runner.process.interrupts import Interrupts
from nanochat.runner.report.markdown import escape
from nanochat.runner.store import provenance
from nanochat.runner.store.sweep_state import SweepState, read_sweep
from nanochat.runner.sweeps.labels import short_names
from nanochat.runner.sweeps.results.cell_results import CellResult, group_by_setting, rank, read_results
from nanochat.runner.sweeps.results.table import describe_setting, show_mean
from nanochat.runner.upload.sweep_view import sweep_view
from nanochat.runner.upload.upload import finish_upload
from nanochat.storage.layout import SweepFolder
from nanochat.tracking.run_view import HOST_TAG, MACHINE_TAG, PID_TAG, STARTED_TAG, RunView, Status
from nanochat.tracking.uploader import Uploader


@contextmanager
def uploading_sweep(
    folder: SweepFolder, state: SweepState, base: Path, display: Display, interrupts: Interrupts
) -> Iterator[None]:
    """Show the sweep as running in MLflow while the block runs, and its results and report after it."""
    tracking = state.tracking
    if tracking.kind == "none" or tracking.uri is None:
        yield
        return
    has_ended = False
    uploader = Uploader(
        tracking.uri,
        tracking.experiment,
        view=lambda: _view(folder, state, base, has_ended=has_ended),
        pending=list,
        machine=provenance.machine_id(),
        is_alive=provenance.is_alive,
    )
    uploader.start()
    try:
        yield
    finally:
        has_ended = True
        finish_upload(uploader, folder.link, display, interrupts)


def _view(folder: SweepFolder, state: SweepState, base: Path, *, has_ended: bool) -> RunView:
    tags = {
        "mlflow.source.name": state.recipe,
        "mlflow.source.type": "LOCAL",
        "mlflow.user": psutil.Process().username(),
        HOST_TAG: provenance.host_name(),
        MACHINE_TAG: provenance.machine_id(),
        PID_TAG: str(os.getpid()),
        STARTED_TAG: str(provenance.process_started()),
    }
    if not has_ended:
        return sweep_view(folder, state, tags=tags)
    state = read_sweep(folder) or state  # a search has added cells
    results = read_results(state, base)
    metrics = {"cells_finished": float(sum(result.status == "finished" for result in results))}
    headline = f"**{several(len(results), 'cell')}**"
    for metric, order in (state.section.rank_by or {}).items():
        if ranked := rank(group_by_setting(results), metric, order):
            best = ranked[0]
            metrics[f"best/{metric.replace('.', '/', 1)}"] = best.mean(metric) or 0.0
            where = describe_setting(best, short_names(list(best.values)))
            headline = f"**{escape(f'best {metric} {show_mean(best, metric)}: {where}')}**"
    return sweep_view(folder, state, tags=tags, status=_status(results), metrics=metrics, headline=headline)


def _status(results: Sequence[CellResult]) -> Status:
    """Return the status of the whole sweep: failed if a cell did, and running while other commands run cells."""
    statuses = {result.status for result in results}
    if "failed" in statuses:
        return "FAILED"
    if "running" in statuses:
        return "RUNNING"
    return "FINISHED" if statuses <= {"finished"} else "KILLED"
