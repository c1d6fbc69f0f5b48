"""Several runs side by side: their results, and the recipe values in which they differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nanochat.runner.catalog import Run
from nanochat.runner.report import Result, list_results

_COMPARED_CHARS = 24


def render_comparison(runs: Sequence[Run], base: Path) -> str:
    """Return a markdown table of the results of several runs and of the recipe values in which they differ."""
    heads = [run.reference for run in runs]
    lines = [f"| | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    tables = [{f"{r.stage}.{r.metric}": r for r in list_results(run.records(base))} for run in runs]
    for name in dict.fromkeys(name for table in tables for name in table):
        lines.append(f"| {name} | {' | '.join(_compared(table.get(name)) for table in tables)} |")
    values = [_identity_values(run, base) for run in runs]
    for name in dict.fromkeys(name for table in values for name in table):
        row = [table.get(name, "default") for table in values]
        if len(set(row)) > 1:
            lines.append(f"| {name} | {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def _compared(result: Result | None) -> str:
    if result is None:
        return "-"
    return f"{result.value:.6g}" + (f" ± {result.stderr:.2g}" if result.stderr is not None else "")


def _identity_values(run: Run, base: Path) -> dict[str, str]:
    """Return the recipe fields, seed and data that decided a run's results, as text."""
    values = {"seed": str(run.state.seed)}
    for record in run.records(base).values():
        for part in ("fields", "sources"):
            content = record.document.get(part)
            if isinstance(content, dict):
                values |= {(f"data of {k}" if part == "sources" else k): _short(v) for k, v in content.items()}
    return values


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _COMPARED_CHARS else text[:_COMPARED_CHARS]
