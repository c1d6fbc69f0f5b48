"""The progress of a sweep, for `watch`: its cells by status, and the curve of one that is running."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nanochat.errors import OK, InterruptedRun, worst
from nanochat.runner.run_snapshot import Snapshot, exit_code_of, take_snapshot
from nanochat.runner.store.locks import is_locked
from nanochat.runner.store.sweep_state import SweepState, read_sweep
from nanochat.runner.sweeps.results.cell_results import SweepResults, count_statuses, read_sweep_results
from nanochat.runner.sweeps.results.result_table import headline
from nanochat.storage.layout import SweepFolder


def take_sweep_snapshot(folder: SweepFolder, state: SweepState, base: Path) -> Snapshot:
    """Return the progress of a sweep: a snapshot of its last cell that has begun, and the number of cells by status."""
    is_active = is_locked(folder)  # before the cells are read: what ends afterwards is seen next time
    state = read_sweep(folder) or state  # a search adds cells
    sweep = read_sweep_results(folder, state, base, is_active=is_active)
    counts = (("cells:", count_statuses(sweep.cells)),)
    running = [x for x in sweep.cells if x.status == "running" and x.run is not None]
    if not running or running[-1].run is None:
        return Snapshot(
            reference=folder.reference, status=sweep.status, message=headline(sweep),
            exit_code=OK if is_active else _exit_code(sweep), is_active=is_active, stages=counts,
            title=None, fraction=0.0, text="", curve_name=None, curve=([], []),
        )  # fmt: skip
    cell, number = take_snapshot(running[-1].run, base), f"cell {running[-1].entry.number}/{state.final_cell_count}"
    return replace(
        cell,
        reference=folder.reference,
        exit_code=OK,
        is_active=True,
        stages=counts,
        title=f"{number}: {cell.title}" if cell.title else None,
        curve_name=f"{number}: {cell.curve_name}" if cell.curve_name else None,
    )


def _exit_code(sweep: SweepResults) -> int:
    """Return the exit code of the command that ran the cells: that of the worst, unless it was stopped."""
    if sweep.status == "interrupted":
        return InterruptedRun.exit_code
    ended = (x.run.state for x in sweep.cells if x.run is not None and x.status in ("failed", "finished"))
    kind = worst(map(exit_code_of, ended))
    return OK if kind is None else kind.exit_code
