"""Shows how far a run is, from another process: the state of its stages, and the curve of one metric so far."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nanochat.errors import InterruptedRun
from nanochat.runner.process.child import read_heartbeat
from nanochat.runner.report.plots import Curve, read_curves
from nanochat.runner.report.run_summary import status_of
from nanochat.runner.store.run_catalog import Run
from nanochat.runner.store.run_state import RunState, read_run
from nanochat.runner.store.session import is_in_progress
from nanochat.storage.series import TRAIN_LOSS, TRAIN_REWARD, VAL_BPB

_WORKING = ("running", "interrupted", "failed")
_CURVES = (TRAIN_REWARD, TRAIN_LOSS, VAL_BPB)
"""The metrics whose curve is shown, the first that a stage has."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A run or a sweep as it is now. A sweep shows the stage and the curve of a cell that is running."""

    reference: str
    status: str
    """See `run_summary.status_of` for a run, `SweepResults.status` for a sweep."""
    message: str
    """How the run ended, if it says so."""
    exit_code: int
    """The exit code of the last command that worked on it. 0 while a command does."""
    is_active: bool
    """Whether a command works on it."""
    stages: tuple[tuple[str, str], ...]
    """The title and the status of each stage. For a sweep, the number of its cells by status."""
    title: str | None
    """The stage that is computed now, or was when the run stopped. None if there is none."""
    fraction: float
    text: str
    """The stage's own line about its progress."""
    curve_name: str | None
    """The stage and the metric of `curve`: of the last stage that has a curve."""
    curve: Curve


def take_snapshot(run: Run, base: Path) -> Snapshot:
    """Return the progress of a run. Its state is read again from its folder."""
    run = Run(run.folder, read_run(run.folder) or run.state)
    is_active = is_in_progress(run)
    current = next((entry for entry in run.state.stages if entry.status in _WORKING), None)
    folders = run.folders(base)
    folder = folders.get(current.stage) if current is not None else None
    progress = read_heartbeat(folder.progress) if folder is not None else None
    name: str | None = None
    curve: Curve = ([], [])
    for stage, files in folders.items():
        curves = read_curves(files.metrics)
        shown = next((metric for metric in _CURVES if metric in curves), None)
        if shown is not None:
            name, curve = f"{stage} {shown}", curves[shown]
    return Snapshot(
        reference=run.reference,
        status=status_of(run, base),
        message=run.state.message,
        exit_code=0 if is_active else exit_code_of(run.state),
        is_active=is_active,
        stages=tuple((entry.title, entry.status) for entry in run.state.stages),
        title=current.title if current else None,
        fraction=progress.fraction if progress else 0.0,
        text=progress.text if progress else "",
        curve_name=name,
        curve=curve,
    )


def exit_code_of(run: RunState) -> int:
    """Return the exit code of the last command that worked on a run: that of an interruption if its process died."""
    return InterruptedRun.exit_code if run.exit_code is None else run.exit_code
