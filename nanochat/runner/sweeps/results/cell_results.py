"""The results of a sweep, read from the folders of its runs: each cell by itself, and ranked over seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanochat.recipe.sweeps.labels import short_names
from nanochat.runner.report.results import metrics_by_name
from nanochat.runner.store.run_catalog import Run, list_runs
from nanochat.runner.store.session import is_in_progress
from nanochat.runner.store.sweep_state import CellEntry, SweepState
from nanochat.storage.layout import SweepFolder

SweepStatus = Literal["running", "failed", "finished", "interrupted"]
CellStatus = Literal["waiting", "running", "finished", "failed", "interrupted", "pruned"]


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """A cell, and what its run has computed so far. `run` is None if it has not begun."""

    entry: CellEntry
    run: Run | None
    status: CellStatus
    metrics: dict[str, float]
    """The results by `stage.metric`."""
    message: str
    """How the run ended, if it failed or missed an expectation."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The cells that differ only in their seed, and their results."""

    values: dict[str, object]
    cells: tuple[CellResult, ...]

    def mean(self, metric: str) -> float | None:
        """Return the mean of a metric over the cells that have it; None if a cell lacks it or it is not a number."""
        values = [cell.metrics[metric] for cell in self.cells if metric in cell.metrics]
        if len(values) < len(self.cells) or not all(map(math.isfinite, values)):
            return None
        return statistics.fmean(values)

    def spread(self, metric: str) -> float | None:
        """Return the standard deviation of a metric over seeds; None for a single seed."""
        values = [cell.metrics[metric] for cell in self.cells if metric in cell.metrics]
        return statistics.stdev(values) if len(values) > 1 else None


@dataclass(frozen=True, kw_only=True)
class SweepResults:
    """A sweep with the results of its cells."""

    folder: SweepFolder
    state: SweepState
    cells: tuple[CellResult, ...]
    is_active: bool = False
    """Whether a command is running its cells."""

    @property
    def status(self) -> SweepStatus:
        """The status of the whole sweep: failed if a cell is, and finished if no cell is left to run or to choose."""
        statuses = {cell.status for cell in self.cells}
        if "failed" in statuses:
            return "failed"
        is_whole = len(self.cells) >= self.state.final_cell_count
        if statuses and statuses <= {"finished", "pruned"} and is_whole:
            return "finished"
        return "running" if self.is_active or "running" in statuses else "interrupted"

    @property
    def names(self) -> dict[str, str]:
        """A short name for each swept field, by its path."""
        return short_names(list(self.cells[0].entry.values) if self.cells else [])

    @property
    def ranked(self) -> list[Setting]:
        """The settings that have the result that ranks them for all of their seeds, the best first."""
        ranking = self.state.section.ranking
        return [] if ranking is None else rank(group_by_setting(self.cells), *ranking)


def read_sweep_results(folder: SweepFolder, state: SweepState, base: Path, *, is_active: bool = False) -> SweepResults:
    """Return a sweep with what its cells have computed so far."""
    return SweepResults(folder=folder, state=state, cells=tuple(read_results(state, base)), is_active=is_active)


def read_results(state: SweepState, base: Path) -> list[CellResult]:
    """Return the result of every cell, in order."""
    return [read_result(entry, base, is_pruned=entry.number in state.pruned) for entry in state.cells]


def count_statuses(results: Iterable[CellResult]) -> str:
    """Return how many cells have which status: `4 finished, 5 waiting`."""
    counts = Counter(result.status for result in results)
    return ", ".join(f"{count} {status}" for status, count in counts.items()) or "no cells yet"


def group_by_setting(results: Iterable[CellResult]) -> list[Setting]:
    """Return the cells that differ only in their seed together, in the order of their first cells."""
    groups: dict[str, list[CellResult]] = {}
    for result in results:
        groups.setdefault(json.dumps(result.entry.values, sort_keys=True), []).append(result)
    return [Setting(values=group[0].entry.values, cells=tuple(group)) for group in groups.values()]


def rank(settings: Sequence[Setting], metric: str, order: Literal["min", "max"]) -> list[Setting]:
    """Return the settings that have a metric in every cell, the best mean first."""
    whole = [(mean, setting) for setting in settings if (mean := setting.mean(metric)) is not None]
    ranked = sorted(whole, key=lambda pair: pair[0], reverse=order == "max")
    return [setting for _, setting in ranked]


def read_result(entry: CellEntry, base: Path, *, is_pruned: bool = False) -> CellResult:
    """Return the result of a cell. A pruned cell has its own status until a command continues it."""
    runs = [run for run in list_runs(base, entry.run) if run.state.plan_digest == entry.plan_digest]
    if not runs:
        return CellResult(entry=entry, run=None, status="pruned" if is_pruned else "waiting", metrics={}, message="")
    run = runs[-1]
    status: CellStatus = run.state.status
    if status == "running" and not is_in_progress(run):
        status = "interrupted"
    if status == "interrupted" and is_pruned:
        status = "pruned"
    return CellResult(
        entry=entry, run=run, status=status, metrics=metrics_by_name(run.records(base)), message=run.state.message
    )
