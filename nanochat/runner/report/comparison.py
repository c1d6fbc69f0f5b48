"""Compare several runs side by side: their results, and the recipe values in which they differ."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from nanochat.plan.quantities import show_score
from nanochat.runner.report.markdown import markdown_table
from nanochat.runner.report.results import list_results
from nanochat.runner.store.run_catalog import Run

_CELL_CHARS = 24
_MAP_ENTRY = re.compile(r"\w+\.(?:suites|data)\.[^.]+\.")
"""The part of a field's path that names a suite or a data set."""


def render_comparison(runs: Sequence[Run], base: Path) -> str:
    """Return markdown tables of the results of several runs and of the recipe values in which they differ."""
    scores = [
        {f"{r.stage}.{r.metric}": show_score(r.value, r.stderr, r.count, digits=6) for r in list_results(records)}
        for records in (run.records(base) for run in runs)
    ]
    results = {name: [of_run.get(name, "-") for of_run in scores] for name in _all_keys(scores)}
    values, stages = [_identity_values(run, base) for run in runs], _stages_of_fields(runs, base)
    differing: dict[str, list[str]] = {}
    for name in _all_keys(values):
        if len({of_run.get(name) for of_run in values}) > 1:
            differing[name] = [
                _shorten(of_run[name])
                if name in of_run
                else "default"
                if run.records(base).keys() & stages[name] and _has_entry(name, of_run)
                else "-"
                for run, of_run in zip(runs, values, strict=True)
            ]
    if not differing:
        return _table("result", runs, results) + "\nThe recipes do not differ in anything that affects results.\n"
    return _table("result", runs, results) + "\n" + _table("recipe", runs, differing)


def _table(heading: str, runs: Sequence[Run], rows: Mapping[str, Sequence[str]]) -> str:
    columns = [heading, *(run.reference for run in runs)]
    return markdown_table(columns, "l" + "r" * len(runs), [(name, *cells) for name, cells in rows.items()]) + "\n"


def _all_keys(tables: Sequence[Mapping[str, object]]) -> list[str]:
    return list(dict.fromkeys(name for table in tables for name in table))


def _identity_values(run: Run, base: Path) -> dict[str, str]:
    """Return, as text, the recipe fields, seed and data that decided a run's results."""
    values = {"seed": str(run.state.seed)}
    for record in run.records(base).values():
        values |= {name: str(value) for name, value in record.recipe_fields.items()}
        values |= {f"data of {name}": digest for name, digest in record.source_digests.items()}
    return values


def _stages_of_fields(runs: Sequence[Run], base: Path) -> dict[str, set[str]]:
    """Return, for each recipe field, the stages whose result it decides in any of these runs."""
    stages: dict[str, set[str]] = defaultdict(set)
    for stage, record in itertools.chain.from_iterable(run.records(base).items() for run in runs):
        for name in record.recipe_fields:
            stages[name].add(stage)
    return stages


def _has_entry(name: str, values: Mapping[str, str]) -> bool:
    """Return whether a run has the suite or data set that a field belongs to. True for other fields."""
    entry = _MAP_ENTRY.match(name)
    return entry is None or any(other.startswith(entry[0]) for other in values)


def _shorten(text: str) -> str:
    return text if len(text) <= _CELL_CHARS else f"{text[: _CELL_CHARS - 1]}…"
