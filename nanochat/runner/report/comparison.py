"""Several runs side by side: their results, and the recipe values in which they differ."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from nanochat.plan.quantities import show_score
from nanochat.runner.report.report import Result, list_results
from nanochat.runner.store.runs import Run

_COMPARED_CHARS = 24
_ENTRY = re.compile(r"\w+\.(?:suites|data)\.[^.]+\.")


def render_comparison(runs: Sequence[Run], base: Path) -> str:
    """Return markdown tables of the results of several runs and of the recipe values in which they differ."""
    results = [{f"{r.stage}.{r.metric}": r for r in list_results(run.records(base))} for run in runs]
    parts = [_table("result", runs, {name: [_compared(of.get(name)) for of in results] for name in _keys(results)})]
    values, stages = [_identity_values(run, base) for run in runs], _stages_of_fields(runs, base)
    differing = {}
    for name in _keys(values):
        if len({of.get(name) for of in values}) > 1:
            has = [run.records(base).keys() & stages.get(name, set()) for run in runs]
            unset = ["default" if h and _has_entry(name, of) else "-" for h, of in zip(has, values, strict=True)]
            differing[name] = [_short(of[name]) if name in of else no for no, of in zip(unset, values, strict=True)]
    parts.append(
        _table("recipe", runs, differing) if differing else "The recipes differ in nothing that decides results.\n"
    )
    return "\n".join(parts)


def _table(what: str, runs: Sequence[Run], rows: Mapping[str, Sequence[str]]) -> str:
    lines = [f"| {what} | {' | '.join(run.reference for run in runs)} |", f"|---|{'---:|' * len(runs)}"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items())]) + "\n"


def _keys(tables: Sequence[Mapping[str, object]]) -> list[str]:
    return list(dict.fromkeys(name for table in tables for name in table))


def _compared(result: Result | None) -> str:
    return "-" if result is None else show_score(result.value, result.stderr, result.count, digits=6)


def _identity_values(run: Run, base: Path) -> dict[str, str]:
    """Return the recipe fields, seed and data that decided a run's results, as text."""
    values = {"seed": str(run.state.seed)}
    for record in run.records(base).values():
        for part in ("fields", "sources"):
            content = record.document.get(part)
            if isinstance(content, dict):
                values |= {(f"data of {k}" if part == "sources" else k): str(v) for k, v in content.items()}
    return values


def _stages_of_fields(runs: Sequence[Run], base: Path) -> dict[str, set[str]]:
    """Return which stages a recipe field decides, as far as these runs show it."""
    found: dict[str, set[str]] = {}
    for run in runs:
        for stage, record in run.records(base).items():
            fields = record.document.get("fields")
            for name in fields if isinstance(fields, dict) else ():
                found.setdefault(name, set()).add(stage)
    return found


def _has_entry(name: str, values: Mapping[str, str]) -> bool:
    """Return whether a run has the suite or data set that a field belongs to; True for other fields."""
    entry = _ENTRY.match(name)
    return entry is None or any(other.startswith(entry[0]) for other in values)


def _short(text: str) -> str:
    return text if len(text) <= _COMPARED_CHARS else f"{text[: _COMPARED_CHARS - 1]}…"
