"""The results of a sweep as JSON values, for other programs."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import JsonValue

from nanochat.runner.scaling_laws.analysis import analysis_to_json
from nanochat.runner.store.sweep_state import SweepState, reference
from nanochat.runner.sweeps.results.cell_results import CellResult, Setting, group_by_setting, rank
from nanochat.runner.sweeps.results.scaling import fit_law
from nanochat.storage.layout import SweepFolder


def sweep_to_json(folder: SweepFolder, state: SweepState, results: Sequence[CellResult]) -> dict[str, JsonValue]:
    """Return the facts that the report of a sweep is made from. Not here: the effect of each field, and pictures."""
    law = fit_law(state, results)
    return {
        "sweep": reference(folder),
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
