"""A sweep as JSON: a summary for `ls`, or all results for its report."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from pydantic import JsonValue

from nanochat.runner.scaling_laws.analysis import analysis_to_json
from nanochat.runner.sweeps.results.cell_results import CellResult, Setting, SweepResults
from nanochat.runner.sweeps.results.fit_law import fit_law


def summary_to_json(sweep: SweepResults) -> JsonValue:
    """Return a sweep as JSON values, as `ls` lists it."""
    ranking, ranked = sweep.state.section.ranking, sweep.ranked
    return {
        "sweep": sweep.folder.reference,
        "name": sweep.state.name,
        "folder": str(sweep.folder.path),
        "status": sweep.status,
        "created": datetime.fromtimestamp(sweep.state.created, UTC).isoformat(),
        "command": sweep.state.command,
        "cells": len(sweep.cells),
        "finished": sum(cell.status == "finished" for cell in sweep.cells),
        "best": {"result": ranking[0], **_setting_to_json(ranked[0], ranking[0])} if ranking and ranked else None,
    }


def sweep_to_json(sweep: SweepResults) -> dict[str, JsonValue]:
    """Return the facts that the report of a sweep is made from. Not here: the effect of each field, and pictures."""
    folder, state, law = sweep.folder, sweep.state, fit_law(sweep)
    rankings = (state.section.rank_by or {}).items()
    return {
        "sweep": folder.reference,
        "name": state.name,
        "folder": str(folder.path),
        "description": state.description,
        "command": state.command,
        "cells": [_cell_to_json(cell) for cell in sweep.cells],
        "ranking": [
            {"result": metric, "order": order, "settings": [_setting_to_json(x, metric) for x in sweep.ranked]}
            for metric, order in rankings
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


def _setting_to_json(setting: Setting, metric: str) -> dict[str, JsonValue]:
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
