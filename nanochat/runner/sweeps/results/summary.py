"""A sweep in a few words: how far it is, and its best setting. For lists of sweeps."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from nanochat.plurals import several
from nanochat.recipe.sweeps.labels import short_names
from nanochat.runner.store.locks import is_locked
from nanochat.runner.store.sweep_state import SweepState, read_sweep, reference
from nanochat.runner.sweeps.results.cell_results import CellResult, Setting, group_by_setting, rank, read_results
from nanochat.runner.sweeps.results.json_results import ranked_setting_to_json
from nanochat.runner.sweeps.results.table import describe_setting, show_mean
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
        "sweep": reference(summary.folder),
        "name": summary.state.name,
        "folder": str(summary.folder.path),
        "status": summary.status,
        "created": datetime.fromtimestamp(summary.state.created, UTC).isoformat(),
        "command": summary.state.command,
        "cells": len(summary.results),
        "finished": sum(result.status == "finished" for result in summary.results),
        "best": None if best is None else {"result": best[0], **ranked_setting_to_json(best[1], best[0])},
    }
