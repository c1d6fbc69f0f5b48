"""A sweep in a few words, for lists of sweeps, how far it is at this moment, and all its results as JSON values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from nanochat.errors import OK, InterruptedRun, worst
from nanochat.plurals import several
from nanochat.recipe.sweeps.labels import short_names
from nanochat.runner.scaling_laws.analysis import analysis_to_json
from nanochat.runner.store.locks import is_locked
from nanochat.runner.store.sweep_state import SweepState, read_sweep
from nanochat.runner.sweeps.results.cell_results import (
    CellResult,
    Setting,
    count_statuses,
    group_by_setting,
    rank,
    read_results,
)
from nanochat.runner.sweeps.results.scaling import fit_law
from nanochat.runner.sweeps.results.table import describe_setting, show_mean
from nanochat.runner.watch import Snapshot, exit_code_of, take_snapshot
from nanochat.storage.layout import SweepFolder, sweep_folders

SweepStatus = Literal["running", "failed", "finished", "interrupted"]


@dataclass(frozen=True, kw_only=True)
class SweepSummary:
    """A sweep with the results of its cells."""

    folder: SweepFolder
    state: SweepState
    results: tuple[CellResult, ...]
    is_active: bool = False
    """Whether a command is running its cells."""

    @property
    def status(self) -> SweepStatus:
        """The status of the whole sweep: failed if a cell is, and finished if no cell is left to run or to choose."""
        statuses = {result.status for result in self.results}
        if "failed" in statuses:
            return "failed"
        is_whole = len(self.results) >= self.state.final_cell_count
        if statuses and statuses <= {"finished", "pruned"} and is_whole:
            return "finished"
        return "running" if self.is_active or "running" in statuses else "interrupted"

    @property
    def best(self) -> tuple[str, Setting] | None:
        """The result that ranks the settings, and the best of them. None if there is none yet."""
        for metric, order in (self.state.section.rank_by or {}).items():
            if ranked := rank(group_by_setting(self.results), metric, order):
                return metric, ranked[0]
        return None

    def headline(self) -> str:
        """Return the number of cells and the best setting on one line."""
        cells = f"sweep of {several(self.state.final_cell_count, 'cell')}"
        if len(self.results) < self.state.final_cell_count:
            cells += f", {len(self.results)} chosen so far"
        if self.best is None:
            return cells
        metric, setting = self.best
        where = describe_setting(setting.values, short_names(list(setting.values)))
        return f"{cells}; best {metric} {show_mean(setting, metric)}{f': {where}' if where else ''}"


def list_sweeps(base: Path) -> list[SweepSummary]:
    """Return the sweeps whose state can be read, the newest last."""
    sweeps = [(folder, read_sweep(folder)) for folder in sweep_folders(base)]
    return [
        SweepSummary(folder=folder, state=state, results=tuple(read_results(state, base)), is_active=is_locked(folder))
        for folder, state in sweeps
        if state is not None
    ]


def list_damaged_sweeps(base: Path) -> list[SweepFolder]:
    """Return the folders of sweeps whose state cannot be read, sorted by their time."""
    return [folder for folder in sweep_folders(base) if read_sweep(folder) is None]


def summary_to_json(summary: SweepSummary) -> JsonValue:
    """Return a sweep as JSON values, as `ls` lists it."""
    best = summary.best
    return {
        "sweep": summary.folder.reference,
        "name": summary.state.name,
        "folder": str(summary.folder.path),
        "status": summary.status,
        "created": datetime.fromtimestamp(summary.state.created, UTC).isoformat(),
        "command": summary.state.command,
        "cells": len(summary.results),
        "finished": sum(result.status == "finished" for result in summary.results),
        "best": None if best is None else {"result": best[0], **ranked_setting_to_json(best[1], best[0])},
    }


def sweep_to_json(folder: SweepFolder, state: SweepState, results: Sequence[CellResult]) -> dict[str, JsonValue]:
    """Return the facts that the report of a sweep is made from. Not here: the effect of each field, and pictures."""
    law = fit_law(state, results)
    return {
        "sweep": folder.reference,
        "name": state.name,
        "folder": str(folder.path),
        "description": state.description,
        "command": state.command,
        "cells": [_cell_to_json(result) for result in results],
        "ranking": [
            {"result": metric, "order": order, "settings": _ranked_to_json(results, metric, order)}
            for metric, order in (state.section.rank_by or {}).items()
        ],
        "law": None if law is None else analysis_to_json(law),
        "report": str(folder.report) if folder.report.is_file() else None,
    }


def _cell_to_json(result: CellResult) -> JsonValue:
    return {
        "cell": result.entry.number,
        "run": result.run.reference if result.run is not None else None,
        "seed": result.entry.seed,
        "status": result.status,
        "message": result.message,
        "values": _as_json(result.entry.values),
        "results": dict(result.metrics),
    }


def _ranked_to_json(results: Sequence[CellResult], metric: str, order: str) -> list[JsonValue]:
    ranked = rank(group_by_setting(results), metric, "min" if order == "min" else "max")
    return [ranked_setting_to_json(setting, metric) for setting in ranked]


def ranked_setting_to_json(setting: Setting, metric: str) -> dict[str, JsonValue]:
    """Return a setting and its result over seeds as JSON values."""
    return {
        "values": _as_json(setting.values),
        "cells": [cell.entry.number for cell in setting.cells],
        "mean": setting.mean(metric),
        "spread": setting.spread(metric),
    }


def _as_json(values: dict[str, object]) -> JsonValue:
    """Return swept values, which come from a JSON file."""
    content: JsonValue = json.loads(json.dumps(values))
    return content


def take_sweep_snapshot(folder: SweepFolder, state: SweepState, base: Path) -> Snapshot:
    """Return the progress of a sweep: a snapshot of its last cell that has begun, and the number of cells by status."""
    is_active = is_locked(folder)  # before the cells are read: what ends afterwards is seen next time
    state = read_sweep(folder) or state  # a search adds cells
    summary = SweepSummary(folder=folder, state=state, results=tuple(read_results(state, base)), is_active=is_active)
    counts = (("cells:", count_statuses(summary.results)),)
    running = [x for x in summary.results if x.status == "running" and x.run is not None]
    if not running or running[-1].run is None:
        return Snapshot(
            reference=folder.reference, status=summary.status, message=summary.headline(),
            exit_code=OK if is_active else _exit_code(summary), is_active=is_active, stages=counts,
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


def _exit_code(summary: SweepSummary) -> int:
    """Return the exit code of the command that ran the cells: that of the worst, unless it was stopped."""
    if summary.status == "interrupted":
        return InterruptedRun.exit_code
    ended = (x.run.state for x in summary.results if x.run is not None and x.status in ("failed", "finished"))
    kind = worst(map(exit_code_of, ended))
    return OK if kind is None else kind.exit_code
