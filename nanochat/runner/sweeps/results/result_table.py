"""The results of a sweep as text: a table with a row for each cell, the best settings, and one line about all."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping

from nanochat.plan.quantities import show_value
from nanochat.plan.text.render import WIDTH, text_table
from nanochat.plurals import several
from nanochat.recipe.sweeps.labels import SEED, show_swept
from nanochat.runner.scaling_laws.analysis import describe_scaling
from nanochat.runner.sweeps.results.cell_results import Setting, SweepResults
from nanochat.runner.sweeps.results.fit_law import fit_law

_DIGITS = 6
_MAX_METRICS = 6
_COMPANIONS = (".stderr", ".n", ".centred", ".bytes", ".tokens", "_cut")
_SHOWN_RANKS = 5


def shown_metrics(sweep: SweepResults) -> list[str]:
    """Return the results that a table shows: the one that ranks the cells, then those that measure quality."""
    names = list(dict.fromkeys(name for cell in sweep.cells for name in cell.metrics))
    chosen = [name for name in names if not name.endswith(_COMPANIONS) and _is_quality(name)]
    ranking = sweep.state.section.ranking
    return list(dict.fromkeys([*([ranking[0]] if ranking is not None else ()), *reversed(chosen)]))[:_MAX_METRICS]


def result_text(sweep: SweepResults) -> str:
    """Return the table of all cells, the best settings, and the scaling law if the recipe asks for one."""
    law = fit_law(sweep)
    parts = [result_table(sweep), *(["\n".join(_ranking(sweep))] if sweep.ranked else ())]
    if law is not None:
        parts.append("\n".join(textwrap.fill(line, WIDTH, subsequent_indent="  ") for line in describe_scaling(law)))
    return "\n\n".join(parts) + "\n"


def result_table(sweep: SweepResults) -> str:
    """Return a table with a row for each cell."""
    head, rows, columns = cell_rows(sweep)
    return text_table([head, *rows], columns)


def cell_rows(sweep: SweepResults) -> tuple[tuple[str, ...], list[tuple[str, ...]], str]:
    """Return the head of a table of the cells, a row for each, and the side of each column: `l` or `r`."""
    names, metrics = sweep.names, shown_metrics(sweep)
    head = ("cell", *names.values(), SEED, "status", *metrics)
    rows = [
        (
            str(cell.entry.number),
            *(show_swept(cell.entry.values[path]) for path in names),
            str(cell.entry.seed),
            cell.status,
            *(_shown(cell.metrics.get(metric)) for metric in metrics),
        )
        for cell in sweep.cells
    ]
    return head, rows, "r" * (len(names) + 2) + "l" + "r" * len(metrics)


def headline(sweep: SweepResults) -> str:
    """Return the number of cells and the best setting on one line."""
    count = sweep.state.final_cell_count
    cells = f"sweep of {several(count, 'cell')}"
    if len(sweep.cells) < count:
        cells += f", {len(sweep.cells)} chosen so far"
    ranking, ranked = sweep.state.section.ranking, sweep.ranked
    if ranking is None or not ranked:
        return cells
    where = describe_setting(ranked[0].values, sweep.names)
    return f"{cells}; best {ranking[0]} {show_mean(ranked[0], ranking[0])}{f': {where}' if where else ''}"


def describe_setting(values: Mapping[str, object], names: Mapping[str, str]) -> str:
    """Return the values of a setting on one line."""
    return ", ".join(f"{names[path]} {show_swept(value)}" for path, value in values.items())


def show_mean(setting: Setting, metric: str) -> str:
    """Return the mean of a metric with its spread over seeds."""
    mean, spread = setting.mean(metric), setting.spread(metric)
    assert mean is not None, "only settings with the metric are ranked"
    over = f" ± {spread:.2g} ({len(setting.cells)} seeds)" if spread is not None else ""
    return f"{show_value(mean, digits=_DIGITS)}{over}"


def _ranking(sweep: SweepResults) -> Iterator[str]:
    """Yield a line for each of the best settings."""
    assert sweep.state.section.ranking is not None, "the settings are ranked"
    metric, _ = sweep.state.section.ranking
    for place, setting in enumerate(sweep.ranked[:_SHOWN_RANKS], start=1):
        where = describe_setting(setting.values, sweep.names) or "all seeds"
        yield f"{place}. {metric} {show_mean(setting, metric)}: {where}"


def _shown(value: float | None) -> str:
    return "-" if value is None else show_value(value, digits=_DIGITS)


def _is_quality(name: str) -> bool:
    stage, _, metric = name.partition(".")
    return stage.endswith("_eval") or "loss" in metric or "bpb" in metric
