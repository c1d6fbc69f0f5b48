"""How far a sweep is at this moment, with the curve of a cell that is running."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nanochat.runner.store.sweep_state import SweepState, read_sweep, reference
from nanochat.runner.sweeps.results.cell_results import read_results
from nanochat.runner.sweeps.results.summary import SweepSummary
from nanochat.runner.watch.snapshot import Snapshot, take_snapshot
from nanochat.storage.layout import SweepFolder


def take_sweep_snapshot(folder: SweepFolder, state: SweepState, base: Path) -> Snapshot:
    """Return how far a sweep is: a snapshot of its last cell that has begun, and how many cells have which status."""
    state = read_sweep(folder) or state  # a search adds cells
    summary = SweepSummary(folder=folder, state=state, results=tuple(read_results(state, base)))
    counts = (("cells:", summary.progress()),)
    running = [x for x in summary.results if x.status == "running" and x.run is not None]
    if not running or running[-1].run is None:
        message = summary.headline()
        return Snapshot(
            reference=reference(folder), status=summary.status, message=message, is_active=False, stages=counts,
            title=None, fraction=0.0, text="", curve_name=None, curve=([], []),
        )  # fmt: skip
    cell, number = take_snapshot(running[-1].run, base), f"cell {running[-1].entry.number}/{len(summary.results)}"
    return replace(
        cell,
        reference=reference(folder),
        stages=counts,
        title=f"{number}: {cell.title}" if cell.title else None,
        curve_name=f"{number}: {cell.curve_name}" if cell.curve_name else None,
    )
