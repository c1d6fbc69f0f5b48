"""Compares several runs side by side: their results, and the recipe values in which they differ."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import JsonValue

from nanochat.errors import RecipeError
from nanochat.plan.compile import compile_plan
from nanochat.plan.quantities import shorten, show_score
from nanochat.recipe.load import load_recipe
from nanochat.runner.report.markdown import markdown_table
from nanochat.runner.report.results import Result
from nanochat.runner.report.run_summary import RunSummary, describe_unfinished, summarise
from nanochat.runner.store.run_catalog import Run

_CELL_CHARS = 24
_MISSING = "missing"
"""The cell of a value that is only known from a result that was lost."""
_MAP_ENTRY = re.compile(r"(?:\w+\.(?:suites|data)|sources)\.([^.]+)")
"""The part of a field's path that names a suite, a data set or a source."""


@dataclass
class _Column:
    """One run of a comparison: its results and values by their name, and its stages without results."""

    summary: RunSummary
    results: dict[str, Result] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    """The recipe fields, seed and data that decided the results."""
    stages_of_fields: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    unknown: set[str] = field(default_factory=set)
    """Stages without results whose fields are not known either."""

    @property
    def absent(self) -> dict[str, str]:
        """The cell of each stage without results: `missing` if it was finished, else how far it came."""
        return {**dict.fromkeys(self.summary.lost, _MISSING), **self.summary.unfinished}

    @property
    def stages(self) -> set[str]:
        return {*self.summary.records, *self.absent}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several runs side by side. Each list of cells has one for each run."""

    runs: tuple[str, ...]
    results: Mapping[str, Sequence[Result | str]]
    """By `stage.metric`: the result, or why there is none; `-` if the run has no such result."""
    recipe: Mapping[str, Sequence[str]]
    """The values that decide results and that differ, by recipe path, or `seed`, or `data of SOURCE`."""
    remarks: tuple[str, ...]
    """Sentences on what could not be compared, is missing, or is not reproducible."""


def compare_runs(runs: Sequence[Run], base: Path) -> Comparison:
    """Return the results of several runs, the values in which their recipes differ, and what is missing."""
    columns = [_read(summarise(run, base)) for run in runs]
    differing: dict[str, list[str]] = {}
    for name in _all_names(column.values for column in columns):
        deciding = {stage for column in columns for stage in column.stages_of_fields[name]}
        cells = [_value(name, column, deciding) for column in columns]
        if len(set(cells) - {_MISSING}) > 1:
            differing[name] = cells
    return Comparison(
        runs=tuple(run.reference for run in runs),
        results={name: [_result(name, column) for column in columns] for name in _all_results(columns)},
        recipe=differing,
        remarks=tuple(dict.fromkeys(_remarks(columns, base, has_differences=bool(differing)))),
    )


def render_comparison(comparison: Comparison) -> str:
    """Return markdown tables of the results and of the differing recipe values, and the remarks below them."""
    results = {name: [_show(cell) for cell in cells] for name, cells in comparison.results.items()}
    recipe = {name: [shorten(cell, _CELL_CHARS) for cell in cells] for name, cells in comparison.recipe.items()}
    tables = [_table("result", comparison.runs, results)]
    tables += [_table("recipe", comparison.runs, recipe)] if recipe else []
    return "\n".join([*tables, *(f"{remark}\n" for remark in comparison.remarks)])


def comparison_to_json(comparison: Comparison) -> dict[str, JsonValue]:
    """Return the comparison as JSON values. A cell without a result is a string that says why there is none."""
    return {
        "runs": list(comparison.runs),
        "results": [
            {"result": name, "cells": [asdict(cell) if isinstance(cell, Result) else cell for cell in cells]}
            for name, cells in comparison.results.items()
        ],
        "recipe": [{"field": name, "cells": list(cells)} for name, cells in comparison.recipe.items()],
        "remarks": list(comparison.remarks),
    }


def _read(summary: RunSummary) -> _Column:
    column, state = _Column(summary), summary.run.state
    column.results = {f"{result.stage}.{result.metric}": result for result in summary.results}
    column.values["seed"] = str(state.seed)
    for stage, record in summary.records.items():
        _add_fields(column, stage, record.recipe_fields)
        column.values |= {f"data of {name}": digest for name, digest in record.source_digests.items()}
    if column.absent:
        fields = _fields_of_recipe(summary.run)
        for stage in column.absent:
            if stage in fields:
                _add_fields(column, stage, fields[stage])
            else:
                column.unknown.add(stage)
    return column


def _add_fields(column: _Column, stage: str, fields: Mapping[str, JsonValue]) -> None:
    for name, value in fields.items():
        column.values[name] = "default" if value == {} else str(value)
        column.stages_of_fields[name].add(stage)


def _fields_of_recipe(run: Run) -> dict[str, Mapping[str, JsonValue]]:
    """Return the fields that decide the result of each stage, according to the recipe that the run's folder keeps."""
    try:
        plan = compile_plan(load_recipe(run.folder.resolved))
    except RecipeError:  # it is not there, or of another version of nanochat
        return {}
    identities = {stage.name: stage.identity.get("fields") for stage in plan.stages}
    return {stage: fields for stage, fields in identities.items() if isinstance(fields, dict)}


def _remarks(columns: Sequence[_Column], base: Path, *, has_differences: bool) -> Iterable[str]:
    if len(columns) == 1:
        yield "Name another run to compare it with."
    elif not has_differences and not any(column.absent for column in columns):
        yield "The recipes do not differ in anything that affects results."
    elif not has_differences and not any(column.unknown for column in columns):
        yield "The recipes do not differ in any field that affects results."
    if any(column.unknown for column in columns):
        yield "The recipes could be compared only in part."
    for column in columns:
        run, lost = column.summary.run, column.summary.lost
        if (unfinished := describe_unfinished(column.summary)) is not None:
            yield f"{unfinished}."
        if lost:
            yield f"Missing: {run.describe_lost(base, lost)}."
        for stage, remark in column.summary.time_remarks.items():
            yield f"{run.reference}: {stage} {remark}."


def _all_results(columns: Sequence[_Column]) -> list[str]:
    """Return the names of all results, those of a stage together, in the order in which stages run."""
    names = _all_names(column.results for column in columns)
    stages = list(dict.fromkeys(entry.stage for column in columns for entry in column.summary.run.state.stages))
    return sorted(names, key=lambda name: stages.index(name.partition(".")[0]))


def _result(name: str, column: _Column) -> Result | str:
    return column.results.get(name) or column.absent.get(name.partition(".")[0], "-")


def _show(cell: Result | str) -> str:
    return cell if isinstance(cell, str) else show_score(cell.value, cell.stderr, cell.count, digits=6)


def _value(name: str, column: _Column, deciding: set[str]) -> str:
    """Return the cell of a value. `deciding` are the stages whose results it decides in any of the runs."""
    if name in column.values:
        return column.values[name]
    if deciding & column.unknown or (column.absent and name.startswith("data of ")):
        return _MISSING
    return "default" if deciding & column.stages and _has_entry(name, column) else "-"


def _has_entry(name: str, column: _Column) -> bool:
    """Return whether a run has the suite, data set or source that a field belongs to. True for other fields."""
    entry = _MAP_ENTRY.match(name)
    if entry is None:
        return True
    if name.startswith("sources."):  # of stages without results, it is not known what they read
        return bool(column.absent) or f"data of {entry[1]}" in column.values
    return any(f"{other}.".startswith(f"{entry[0]}.") for other in column.values)


def _table(heading: str, runs: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    table = markdown_table([heading, *runs], "l" + "r" * len(runs), [(name, *cells) for name, cells in rows.items()])
    return f"{table}\n"


def _all_names(tables: Iterable[Mapping[str, object]]) -> list[str]:
    return list(dict.fromkeys(name for table in tables for name in table))
