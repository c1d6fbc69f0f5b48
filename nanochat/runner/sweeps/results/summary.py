"""Sums up a sweep from the results of its cells: status and best setting for lists, and all results as JSON.

Not here: progress while it runs (`sweep_snapshot`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from nanochat.plurals import several
from nanochat.recipe.sweeps.labels import short_names
from nanochat.runner.scaling_laws.analysis import analysis_to_json
from nanochat.runner.store.locks import is_locked
from nanochat.runner.store.sweep_state import SweepState, read_sweep
from nanochat.runner.sweeps.results.cell_results import (
    CellResult,
    Setting,
    group_by_setting,
    rank,
    read_results,
)
from nanochat.runner.sweeps.results.fit_law import fit_law
from nanochat.runner.sweeps.results.result_table import describe_setting, show_mean
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
        "best": None if best is None else {"result": best[0], **_ranked_setting_to_json(best[1], best[0])},
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
    return [_ranked_setting_to_json(setting, metric) for setting in ranked]


def _ranked_setting_to_json(setting: Setting, metric: str) -> dict[str, JsonValue]:
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
