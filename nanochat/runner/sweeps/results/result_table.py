"""The results of a sweep as a table of text: a row for each cell, and the best settings."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from nanochat.plan.quantities import show_value
from nanochat.plan.text.render import WIDTH, text_table
from nanochat.recipe.sweeps.labels import SEED, short_names, show_swept
from nanochat.runner.scaling_laws.analysis import describe
from nanochat.runner.store.sweep_state import SweepState
from nanochat.runner.sweeps.results.cell_results import CellResult, Setting, group_by_setting, rank
from nanochat.runner.sweeps.results.fit_law import fit_law

_DIGITS = 6
_MAX_METRICS = 6
_COMPANIONS = (".stderr", ".n", ".centred", ".bytes", ".tokens", "_cut")
_SHOWN_RANKS = 5


def shown_metrics(state: SweepState, results: Sequence[CellResult]) -> list[str]:
    """Return the results that a table shows: that which ranks the cells, then those that say how good they are."""
    names = list(dict.fromkeys(name for result in results for name in result.metrics))
    chosen = [name for name in names if not name.endswith(_COMPANIONS) and _is_quality(name)]
    ranking = list(state.section.rank_by or {})
    return list(dict.fromkeys([*ranking, *reversed(chosen)]))[:_MAX_METRICS]


def result_text(state: SweepState, results: Sequence[CellResult]) -> str:
    """Return the table of all cells, the ranking of the settings, and the scaling law if the recipe asks for one."""
    law = fit_law(state, results)
    parts = [result_table(state, results), *ranking(state, results)]
    if law is not None:
        parts.append("\n".join(textwrap.fill(line, WIDTH, subsequent_indent="  ") for line in describe(law)))
    return "\n\n".join(parts) + "\n"


def result_table(state: SweepState, results: Sequence[CellResult]) -> str:
    """Return a table with a row for each cell."""
    head, rows, columns = cell_rows(state, results)
    return text_table([head, *rows], columns)


def cell_rows(state: SweepState, results: Sequence[CellResult]) -> tuple[tuple[str, ...], list[tuple[str, ...]], str]:
    """Return the head of a table of the cells, a row for each, and the side of each column: `l` or `r`."""
    paths = list(results[0].entry.values) if results else []
    names, metrics = short_names(paths), shown_metrics(state, results)
    head = ("cell", *(names[path] for path in paths), SEED, "status", *metrics)
    rows = [
        (
            str(result.entry.number),
            *(show_swept(result.entry.values[path]) for path in paths),
            str(result.entry.seed),
            result.status,
            *(_shown(result.metrics.get(metric)) for metric in metrics),
        )
        for result in results
    ]
    return head, rows, "r" * (len(paths) + 2) + "l" + "r" * len(metrics)


def describe_setting(values: Mapping[str, object], names: Mapping[str, str]) -> str:
    """Return the values of a setting on one line."""
    return ", ".join(f"{names[path]} {show_swept(value)}" for path, value in values.items())


def show_mean(setting: Setting, metric: str) -> str:
    """Return the mean of a metric with its spread over seeds."""
    mean, spread = setting.mean(metric), setting.spread(metric)
    assert mean is not None, "only settings with the metric are ranked"
    over = f" ± {spread:.2g} ({len(setting.cells)} seeds)" if spread is not None else ""
    return f"{show_value(mean, digits=_DIGITS)}{over}"


def ranking(state: SweepState, results: Sequence[CellResult]) -> list[str]:
    """Return the best settings as lines of one text, or no text if the recipe does not rank them."""
    names = short_names(list(results[0].entry.values) if results else [])
    lines = []
    for metric, order in (state.section.rank_by or {}).items():
        ranked = rank(group_by_setting(results), metric, order)
        lines += [
            f"{place}. {metric} {show_mean(setting, metric)}: {describe_setting(setting.values, names) or 'all seeds'}"
            for place, setting in enumerate(ranked[:_SHOWN_RANKS], start=1)
        ]
    return ["\n".join(lines)] if lines else []


def _shown(value: float | None) -> str:
    return "-" if value is None else show_value(value, digits=_DIGITS)


def _is_quality(name: str) -> bool:
    stage, _, metric = name.partition(".")
    return stage.endswith("_eval") or "loss" in metric or "bpb" in metric
