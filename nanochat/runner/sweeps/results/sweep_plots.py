"""Plots of a sweep: the learning curves of all cells together, and the marginal effect of each field."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.plan.stages import training_stages
from nanochat.plurals import several
from nanochat.recipe.sweeps.labels import short_names
from nanochat.runner.report.plots import new_figure, save_figure, smooth
from nanochat.runner.store.verification import damage_to_read
from nanochat.runner.sweeps.results.cell_results import CellResult, SweepResults
from nanochat.runner.sweeps.results.effects import Effect
from nanochat.runner.sweeps.results.result_table import describe_setting
from nanochat.storage.series import TRAIN_LOSS
from nanochat.tracking.points import read_points

if TYPE_CHECKING:  # imported only when something is drawn, because it takes long
    from matplotlib.axes import Axes

CURVES_PLOT, EFFECTS_PLOT = "curves.png", "effects.png"
_MAX_LEGEND = 12
_WIDTH, _HEIGHT = 8.4, 4.6
_BLUE, _GREY = "#34495e", "#b8c4ce"
_LOG_SPAN = 8.0
"""An axis of numbers is logarithmic if the largest is this many times the smallest."""


def draw_curves(sweep: SweepResults, base: Path, *, metric: str) -> list[Path]:
    """Draw the training loss of every cell by step into one plot, coloured by a result, and return its path."""
    from matplotlib import colormaps

    curves = {cell.entry.number: curve for cell in sweep.cells if (curve := _loss_curve(cell, base)) is not None}
    if not curves:
        return []
    figure = new_figure(_WIDTH, _HEIGHT, layout="constrained")
    axes = figure.add_subplot()
    order, labels = _order(sweep, metric), _labels(sweep)
    for number in sorted(curves, key=lambda number: order[number]):
        steps, values = curves[number]
        color = colormaps["viridis"](order[number])
        axes.plot(steps, smooth(values) or values, color=color, linewidth=1.1, label=labels[number])
    axes.set_title(
        f"training loss of {several(len(curves), 'cell')}, from the best {metric} (dark) to the worst (light)"
    )
    axes.set(xlabel="step", ylabel="loss (nats per token)", xscale="log")
    axes.grid(alpha=0.3)
    if len(curves) <= _MAX_LEGEND:
        axes.legend(fontsize=8)
    path = sweep.folder.plots / CURVES_PLOT
    save_figure(figure, path)
    return [path]


def draw_effects(effects: Sequence[Effect], folder: Path, *, metric: str) -> list[Path]:
    """Draw a panel for each field: the results of all cells by its value, their means, and the spread over seeds."""
    if not effects:
        return []
    columns = min(3, len(effects))
    rows = math.ceil(len(effects) / columns)
    figure = new_figure(4.2 * columns, 3.4 * rows, layout="constrained")
    names = short_names([path for effect in effects for path in effect.paths])
    for number, effect in enumerate(effects, start=1):
        axes = figure.add_subplot(rows, columns, number)
        _draw_effect(axes, effect)
        axes.set(xlabel=", ".join(names[path] for path in effect.paths), ylabel=metric)
        axes.grid(alpha=0.3)
    save_figure(figure, folder / EFFECTS_PLOT)
    return [folder / EFFECTS_PLOT]


def _draw_effect(axes: Axes, effect: Effect) -> None:
    numbers = [level.number for level in effect.levels]
    are_numbers = len(effect.paths) == 1 and all(number is not None for number in numbers)
    places = [float(number or 0) for number in numbers] if are_numbers else [float(i) for i in range(len(numbers))]
    for place, level in zip(places, effect.levels, strict=True):
        axes.plot([place] * len(level.results), level.results, "o", color=_GREY, markersize=4)
    order = sorted(range(len(places)), key=lambda i: places[i])
    bars = [effect.levels[i].spread or 0.0 for i in order]
    means = [effect.levels[i].mean for i in order]
    line = "-" if are_numbers else ""
    axes.errorbar([places[i] for i in order], means, yerr=bars, fmt=f"o{line}", color=_BLUE, capsize=4)
    if are_numbers and min(places) > 0 and max(places) >= _LOG_SPAN * min(places):
        axes.set_xscale("log")
    if not are_numbers or len(places) <= _MAX_LEGEND:
        axes.set_xticks(places, [level.label for level in effect.levels], rotation=30 if len(places) > 4 else 0)
        axes.minorticks_off()


def _loss_curve(result: CellResult, base: Path) -> tuple[list[int], list[float]] | None:
    """Return the steps and the training loss of a cell's first training stage, None if it has none that is sound."""
    if result.run is None:
        return None
    folders, records = result.run.folders(base), result.run.records(base)
    stage = next((name for name in training_stages() if name in folders), None)
    if stage is None or not folders[stage].metrics.is_file():
        return None
    if damage_to_read(folders[stage], records.get(stage), folders[stage].metrics) is not None:
        return None
    points = [point for point in read_points(folders[stage].metrics) if point.name == TRAIN_LOSS]
    points = [point for point in points if math.isfinite(point.value)]
    return ([point.step for point in points], [point.value for point in points]) if points else None


def _order(sweep: SweepResults, metric: str) -> Mapping[int, float]:
    """Return the place of each cell among all by a metric, from 0 for the best to 0.9. Cells without it come last."""
    sign = -1 if sweep.state.section.ranking == (metric, "max") else 1
    numbers = sorted(sweep.cells, key=lambda x: sign * x.metrics[metric] if metric in x.metrics else math.inf)
    return {result.entry.number: 0.9 * i / max(1, len(numbers) - 1) for i, result in enumerate(numbers)}


def _labels(sweep: SweepResults) -> Mapping[int, str]:
    has_seeds = len({cell.entry.seed for cell in sweep.cells}) > 1
    labels = {}
    for cell in sweep.cells:
        parts = [describe_setting(cell.entry.values, sweep.names), f"seed {cell.entry.seed}" if has_seeds else ""]
        labels[cell.entry.number] = ", ".join(filter(None, parts))
    return labels
