"""The report of a sweep: the best cells, what each field does, the scaling law, all curves in one plot, all results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nanochat.plan.quantities import show_value
from nanochat.plurals import several
from nanochat.recipe.sweeps.labels import short_names, show_swept
from nanochat.runner.report.html import render_html
from nanochat.runner.report.markdown import code_span, escape, join_parts, markdown_table, paragraphs
from nanochat.runner.scaling_laws.analysis import describe
from nanochat.runner.scaling_laws.scaling_plots import draw_scaling
from nanochat.runner.store.sweep_state import SweepState
from nanochat.runner.sweeps.results.cell_results import CellResult, count_statuses, group_by_setting, rank, read_results
from nanochat.runner.sweeps.results.effects import Effect, list_effects
from nanochat.runner.sweeps.results.fit_law import fit_law, loss_name
from nanochat.runner.sweeps.results.result_table import cell_rows, show_mean, shown_metrics
from nanochat.runner.sweeps.results.sweep_plots import CURVES_PICTURE, EFFECTS_PICTURE, draw_curves, draw_effects
from nanochat.storage.files import write_text
from nanochat.storage.layout import SweepFolder

_DIGITS = 6
_EFFECTS_INTRO = """\
For each value of a field: the mean of the result over all cells that have the value, with any values of the other
fields. `±` is the standard deviation of that mean over seeds; differences that are not clearly larger say nothing."""
_UNBALANCED = """\
These values were not all tried with the same values of the other fields, so part of the difference is due to those."""
_CURVES_INTRO = "The training loss of every cell, averaged over neighbouring steps."
_LAW_INTRO = """\
A parameter is a scaling parameter here (the matrices of the blocks and `lm_head`), so tokens per parameter are what
`pretrain.horizon.ratio` takes."""


def write_sweep_report(folder: SweepFolder, state: SweepState, base: Path, *, with_plots: bool = True) -> Path:
    """Write `report.md`, `report.html` and the pictures into the sweep's folder, and return the path of `report.md`."""
    results = read_results(state, base)
    plots = _draw(folder, state, results, base) if with_plots else []
    text = sweep_report(state, results, plots=[path.name for path in plots])
    pictures = {f"{folder.plots.name}/{path.name}": path for path in plots}
    write_text(folder.report_page, render_html(text, pictures, attached=(folder.recipe, folder.resolved)))
    write_text(folder.report, text)
    return folder.report


def sweep_report(state: SweepState, results: Sequence[CellResult], *, plots: Sequence[str]) -> str:
    """Return the report as markdown. `plots` names the pictures in `plots/`."""
    metric = _main_metric(state, results)
    effects = list_effects(results, metric, zipped=state.section.zip) if metric else []
    law = fit_law(state, results)
    scaling = [name for name in plots if name not in (CURVES_PICTURE, EFFECTS_PICTURE)]
    failures = [result for result in results if result.message]
    head, rows, columns = cell_rows(state, results)
    parts = [
        f"# {escape(state.name)}",
        paragraphs(state.description),
        f"{several(len(results), 'cell')}: {count_statuses(results)}.",
        *(["## The best", _ranking(state, results)] if state.section.rank_by else ()),
        *(["## What each field does", _EFFECTS_INTRO, *map(_effect_table, effects)] if effects else ()),
        *([_image(EFFECTS_PICTURE)] if EFFECTS_PICTURE in plots else ()),
        *(["## Scaling law", _LAW_INTRO, _list(describe(law)), *map(_image, scaling)] if law is not None else ()),
        *(["## Learning curves", _CURVES_INTRO, _image(CURVES_PICTURE)] if CURVES_PICTURE in plots else ()),
        "## All cells",
        markdown_table(head, columns, rows),
        *(["## Messages", _list([f"cell {x.entry.number}: {x.message}" for x in failures])] if failures else ()),
        "## What was run",
        f"Command: {code_span(state.command)}",
        _run_table(results),
    ]
    return join_parts(parts) + "\n"


def _main_metric(state: SweepState, results: Sequence[CellResult]) -> str:
    """Return the result that ranks the cells, else the one that says most about them; empty if there are none."""
    return next(iter(shown_metrics(state, results)), "")


def _draw(folder: SweepFolder, state: SweepState, results: Sequence[CellResult], base: Path) -> list[Path]:
    metric = _main_metric(state, results)
    if not metric:
        return []
    drawn = draw_effects(list_effects(results, metric, zipped=state.section.zip), folder.plots, metric=metric)
    if (law := fit_law(state, results)) is not None:
        drawn += draw_scaling(law, folder.plots, loss_name=loss_name(state))
    is_large_best = (state.section.rank_by or {}).get(metric) == "max"
    return [*drawn, *draw_curves(results, base, folder.plots, metric=metric, is_large_best=is_large_best)]


def _ranking(state: SweepState, results: Sequence[CellResult]) -> str:
    ((metric, order),) = (state.section.rank_by or {}).items()
    ranked = rank(group_by_setting(results), metric, order)
    if not ranked:
        return "No setting has results for all of its seeds yet."
    paths = list(ranked[0].values)
    names = short_names(paths)
    rows = [
        (str(place), *(show_swept(setting.values[path]) for path in paths), show_mean(setting, metric))
        for place, setting in enumerate(ranked, start=1)
    ]
    table = markdown_table(("place", *(names[path] for path in paths), metric), "r" * (len(paths) + 2), rows)
    return f"{table}\n\n`nanochat-run best {state.name}` prints the recipe of the first place."


def _effect_table(effect: Effect) -> str:
    heading = ", ".join(effect.paths)
    rows = [
        (
            level.label,
            show_value(level.mean, digits=_DIGITS),
            "-" if level.spread is None else f"± {level.spread:.2g}",
            str(len(level.results)),
        )
        for level in effect.levels
    ]
    table = markdown_table((heading, "mean", "over seeds", "cells"), "rrrr", rows)
    return table if effect.is_balanced else f"{table}\n\n{_UNBALANCED}"


def _run_table(results: Sequence[CellResult]) -> str:
    rows = [(str(x.entry.number), x.run.reference if x.run is not None else x.entry.run) for x in results]
    return markdown_table(("cell", "run"), "rl", rows)


def _image(name: str) -> str:
    return f"![{name.removesuffix('.png').replace('_', ' ')}](plots/{name})"


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {escape(line)}" for line in lines)
