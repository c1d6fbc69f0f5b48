"""The report of a sweep: the best cells, what each field does, the scaling law, all curves in one plot, all results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nanochat.plan.quantities import show_value
from nanochat.plurals import several
from nanochat.recipe.sweeps.labels import show_swept
from nanochat.runner.report.html import render_html
from nanochat.runner.report.markdown import code_span, escape, join_parts, markdown_table, paragraphs, plot_image
from nanochat.runner.scaling_laws.analysis import describe_scaling
from nanochat.runner.scaling_laws.scaling_plots import draw_scaling
from nanochat.runner.store.sweep_state import SweepState
from nanochat.runner.sweeps.results.cell_results import CellResult, SweepResults, count_statuses, read_sweep_results
from nanochat.runner.sweeps.results.effects import Effect, list_effects
from nanochat.runner.sweeps.results.fit_law import fit_law, loss_name
from nanochat.runner.sweeps.results.result_table import cell_rows, show_mean, shown_metrics
from nanochat.runner.sweeps.results.sweep_plots import CURVES_PLOT, EFFECTS_PLOT, draw_curves, draw_effects
from nanochat.storage.files import write_text
from nanochat.storage.layout import SweepFolder

_DIGITS = 6
_EFFECTS_INTRO = """\
For each value of a field: the mean of the result over all cells that have the value, with any values of the other
fields. `±` is the standard deviation of that mean over seeds; a difference that is not clearly larger means nothing."""
_UNBALANCED = """\
These values were not all tried with the same values of the other fields, so part of the difference is due to those."""
_CURVES_INTRO = "The training loss of every cell, averaged over neighbouring steps."
_LAW_INTRO = """\
A parameter is a scaling parameter here (the matrices of the blocks and `lm_head`), so tokens per parameter are what
`pretrain.horizon.ratio` takes."""


def write_sweep_report(folder: SweepFolder, state: SweepState, base: Path, *, with_plots: bool = True) -> Path:
    """Write `report.md`, `report.html` and the plots into the sweep's folder, and return the path of `report.md`."""
    sweep = read_sweep_results(folder, state, base)
    plots = _draw(sweep, base) if with_plots else []
    text = sweep_report(sweep, plots=[path.name for path in plots])
    pictures = {f"{folder.plots.name}/{path.name}": path for path in plots}
    write_text(folder.report_page, render_html(text, pictures, attached=(folder.recipe, folder.resolved)))
    write_text(folder.report, text)
    return folder.report


def sweep_report(sweep: SweepResults, *, plots: Sequence[str]) -> str:
    """Return the report as markdown. `plots` names the plots in `plots/`."""
    state, cells = sweep.state, sweep.cells
    law = fit_law(sweep)
    scaling = [name for name in plots if name not in (CURVES_PLOT, EFFECTS_PLOT)]
    messages = [f"cell {cell.entry.number}: {cell.message}" for cell in cells if cell.message]
    effects = _effects(sweep)
    head, rows, columns = cell_rows(sweep)
    parts = [
        f"# {escape(state.name)}",
        paragraphs(state.description),
        f"{several(len(cells), 'cell')}: {count_statuses(cells)}.",
        *(["## The best", _ranking(sweep, state.section.ranking[0])] if state.section.ranking else ()),
        *(["## What each field does", _EFFECTS_INTRO, *map(_effect_table, effects)] if effects else ()),
        *([plot_image(EFFECTS_PLOT)] if EFFECTS_PLOT in plots else ()),
        *(
            ["## Scaling law", _LAW_INTRO, _list(describe_scaling(law)), *map(plot_image, scaling)]
            if law is not None
            else ()
        ),
        *(["## Learning curves", _CURVES_INTRO, plot_image(CURVES_PLOT)] if CURVES_PLOT in plots else ()),
        "## All cells",
        markdown_table(head, columns, rows),
        *(["## Messages", _list(messages)] if messages else ()),
        "## What was run",
        f"Command: {code_span(state.command)}",
        _run_table(cells),
    ]
    return join_parts(parts) + "\n"


def _main_metric(sweep: SweepResults) -> str:
    """Return the result that ranks the cells, else the first one that measures quality; empty if there is none."""
    return next(iter(shown_metrics(sweep)), "")


def _effects(sweep: SweepResults) -> list[Effect]:
    metric = _main_metric(sweep)
    return list_effects(sweep.cells, metric, zipped=sweep.state.section.zip) if metric else []


def _draw(sweep: SweepResults, base: Path) -> list[Path]:
    metric, folder = _main_metric(sweep), sweep.folder.plots
    if not metric:
        return []
    drawn = draw_effects(_effects(sweep), folder, metric=metric)
    if (law := fit_law(sweep)) is not None:
        drawn += draw_scaling(law, folder, loss_name=loss_name(sweep.state))
    return [*drawn, *draw_curves(sweep, base, metric=metric)]


def _ranking(sweep: SweepResults, metric: str) -> str:
    if not sweep.ranked:
        return "No setting has results for all of its seeds yet."
    names = sweep.names
    rows = [
        (str(place), *(show_swept(setting.values[path]) for path in names), show_mean(setting, metric))
        for place, setting in enumerate(sweep.ranked, start=1)
    ]
    table = markdown_table(("place", *names.values(), metric), "r" * (len(names) + 2), rows)
    return f"{table}\n\n`nanochat-run best {sweep.state.name}` prints the recipe of the first place."


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


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {escape(line)}" for line in lines)
