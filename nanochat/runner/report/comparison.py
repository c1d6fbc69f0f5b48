"""Compare several runs side by side: their results, and the recipe values in which they differ."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue

from nanochat.errors import RecipeError
from nanochat.plan.compile import compile_plan
from nanochat.plan.quantities import show_score
from nanochat.recipe.load import load_recipe
from nanochat.runner.report.markdown import markdown_table
from nanochat.runner.report.results import list_results
from nanochat.runner.store.run_catalog import Run

_CELL_CHARS = 24
_MISSING = "missing"
"""The cell of a value that only a lost result would tell."""
_MAP_ENTRY = re.compile(r"\w+\.(?:suites|data)\.[^.]+\.")
"""The part of a field's path that names a suite or a data set."""


@dataclass
class _Column:
    """What is known about one run: values as text by their name, and the stages whose results are not here."""

    scores: dict[str, str] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    """The recipe fields, seed and data that decided the results."""
    stages_of_fields: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    stages: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    """Stages whose results are not here. Their fields come from the run's copy of its recipe."""
    unknown: set[str] = field(default_factory=set)
    """Those of them whose fields are not known either."""


def render_comparison(runs: Sequence[Run], base: Path) -> str:
    """Return markdown tables of the results of several runs and of the recipe values in which they differ.

    What is missing is named below them, with the folders that were searched.
    """
    columns = [_read(run, base) for run in runs]
    results = {name: [_score(name, column) for column in columns] for name in _all_names(c.scores for c in columns)}
    differing: dict[str, list[str]] = {}
    for name in _all_names(column.values for column in columns):
        deciding = {stage for column in columns for stage in column.stages_of_fields[name]}
        cells = [_value(name, column, deciding) for column in columns]
        if len(set(cells) - {_MISSING}) > 1:
            differing[name] = [_shorten(cell) for cell in cells]
    parts = [_table("result", runs, results)]
    if differing:
        parts.append(_table("recipe", runs, differing))
    elif not any(column.lost for column in columns):
        parts.append("The recipes do not differ in anything that affects results.\n")
    elif not any(column.unknown for column in columns):
        parts.append("The recipes do not differ in any field that affects results.\n")
    if any(column.unknown for column in columns):
        parts.append("The recipes could be compared only in part.\n")
    missing = [f"Missing: {run.describe_lost(base, c.lost)}.\n" for run, c in zip(runs, columns, strict=True) if c.lost]
    return "\n".join([*parts, *dict.fromkeys(missing)])


def _read(run: Run, base: Path) -> _Column:
    column, records, lost = _Column(), run.records(base), run.lost(base)
    column.stages, column.lost = records.keys() | lost.keys(), set(lost)
    for result in list_results(records):
        shown = show_score(result.value, result.stderr, result.count, digits=6)
        column.scores[f"{result.stage}.{result.metric}"] = shown
    column.values["seed"] = str(run.state.seed)
    for stage, record in records.items():
        _add_fields(column, stage, record.recipe_fields)
        column.values |= {f"data of {name}": digest for name, digest in record.source_digests.items()}
    if lost:
        fields = _fields_of_recipe(run)
        for stage in lost:
            if stage in fields:
                _add_fields(column, stage, fields[stage])
            else:
                column.unknown.add(stage)
    return column


def _add_fields(column: _Column, stage: str, fields: Mapping[str, JsonValue]) -> None:
    for name, value in fields.items():
        column.values[name] = str(value)
        column.stages_of_fields[name].add(stage)


def _fields_of_recipe(run: Run) -> dict[str, Mapping[str, JsonValue]]:
    """Return the fields that decide the result of each stage, according to the recipe that the run's folder keeps."""
    try:
        plan = compile_plan(load_recipe(run.folder.resolved))
    except RecipeError:  # it is not there, or of another version of nanochat
        return {}
    identities = {stage.name: stage.identity.get("fields") for stage in plan.stages}
    return {stage: fields for stage, fields in identities.items() if isinstance(fields, dict)}


def _score(name: str, column: _Column) -> str:
    return column.scores.get(name, _MISSING if name.partition(".")[0] in column.lost else "-")


def _value(name: str, column: _Column, deciding: set[str]) -> str:
    """Return the cell of a value. `deciding` are the stages whose results it decides in any of the runs."""
    if name in column.values:
        return column.values[name]
    if deciding & column.unknown or (column.lost and name.startswith("data of ")):
        return _MISSING
    return "default" if deciding & column.stages and _has_entry(name, column.values) else "-"


def _has_entry(name: str, values: Mapping[str, str]) -> bool:
    """Return whether a run has the suite or data set that a field belongs to. True for other fields."""
    entry = _MAP_ENTRY.match(name)
    return entry is None or any(other.startswith(entry[0]) for other in values)


def _table(heading: str, runs: Sequence[Run], rows: Mapping[str, Sequence[str]]) -> str:
    columns = [heading, *(run.reference for run in runs)]
    return markdown_table(columns, "l" + "r" * len(runs), [(name, *cells) for name, cells in rows.items()]) + "\n"


def _all_names(tables: Iterable[Mapping[str, object]]) -> list[str]:
    return list(dict.fromkeys(name for table in tables for name in table))


def _shorten(text: str) -> str:
    return text if len(text) <= _CELL_CHARS else f"{text[: _CELL_CHARS - 1]}…"
