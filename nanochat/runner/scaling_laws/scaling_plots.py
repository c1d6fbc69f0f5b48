"""Plots of scaling laws: isoFLOP curves, loss by compute, and the best number of tokens per parameter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nanochat.plan.quantities import show_count
from nanochat.runner.report.plots import new_figure, save_figure
from nanochat.runner.scaling_laws.analysis import ScalingAnalysis
from nanochat.runner.scaling_laws.isoflop import IsoflopCurve
from nanochat.runner.scaling_laws.loss_law import LossLaw
from nanochat.runner.scaling_laws.trained_models import CONFIDENCE, TrainedModel, Uncertain

if TYPE_CHECKING:  # imported only when something is drawn, because it takes long
    from matplotlib.axes import Axes

ISOFLOP_PLOT, COMPUTE_PLOT, RATIO_PLOT = "isoflop.png", "loss_by_compute.png", "tokens_per_parameter.png"

_SIZE = (7.2, 4.6)
_RED, _BLUE = "#c0392b", "#34495e"
_BEST: dict[str, Any] = {"fmt": "D", "color": _RED, "markersize": 6, "capsize": 4, "elinewidth": 2, "zorder": 5}
_BEST_LABEL = f"best size, {CONFIDENCE:.0%} interval"
_LAW_MARGIN = 2.0
"""The law is drawn for each size from this factor below its runs to this factor above them."""


def draw_scaling(analysis: ScalingAnalysis, folder: Path, *, loss_name: str) -> list[Path]:
    """Draw into `folder` what the analysis has, and return the paths. `loss_name` labels the axis of the loss."""
    curves = analysis.isoflop.curves if analysis.isoflop is not None else ()
    has_best = any(curve.best is not None for curve in curves)
    drawn = []
    if curves:
        drawn.append(_draw_isoflop(analysis, curves, folder / ISOFLOP_PLOT, loss_name))
    if has_best or analysis.law is not None:
        drawn.append(_draw_compute(analysis, curves, folder / COMPUTE_PLOT, loss_name))
        drawn.append(_draw_ratio(analysis, curves, folder / RATIO_PLOT))
    return drawn


def _draw_isoflop(analysis: ScalingAnalysis, curves: Sequence[IsoflopCurve], path: Path, loss_name: str) -> Path:
    axes = _new_axes("loss by model size at equal compute", "parameters", loss_name)
    shades = [_shade(i / max(1, len(curves) - 1)) for i in range(len(curves))]
    for curve, color in zip(curves, shades, strict=True):
        _plot_runs(axes, [p for p in analysis.points if p.flops in curve.settings.flops], at="params", color=color)
        label = f"{_power_of_ten(curve.flops)} FLOPs"
        axes.plot(curve.settings.params, curve.settings.losses[0], "o", color=color, label=label)
        if curve.parabola is not None:
            params = np.geomspace(curve.settings.params.min(), curve.settings.params.max(), 100)
            axes.plot(params, curve.parabola.predict(params), color=color, linewidth=1.5)
        if curve.best is not None and curve.best.loss is not None:
            axes.errorbar(curve.best.params.value, curve.best.loss.value, xerr=_bars(curve.best.params), **_BEST)
    if any(curve.best is not None for curve in curves):
        axes.errorbar([], [], xerr=[], label=_BEST_LABEL, **_BEST)
    axes.legend(fontsize=9)
    return _finish(axes, path, _short_count)


def _draw_compute(analysis: ScalingAnalysis, curves: Sequence[IsoflopCurve], path: Path, loss_name: str) -> Path:
    axes = _new_axes("loss by compute", "training FLOPs", loss_name)
    sizes = sorted({point.params for point in analysis.points})
    scale = _size_scale(axes, sizes)
    for size in sizes:
        points = [point for point in analysis.points if point.params == size]
        color = scale.to_rgba(size)
        _plot_runs(axes, points, at="flops", color=color, alpha=0.8, markersize=9)
        if analysis.law is not None:
            axes.plot(*_law_of_size(analysis.law, size, points), color=color, alpha=0.6, linewidth=1)
    if analysis.law is not None:
        budgets = _budgets(analysis, to=1.0)
        loss = [best.value for budget in budgets if (best := analysis.law.optimum(budget).loss)]
        axes.plot(budgets, loss, color=_BLUE, linestyle="--", linewidth=2, label="lowest loss by the law")
    for number, curve in enumerate(curve for curve in curves if curve.best is not None):
        assert curve.best is not None and curve.best.loss is not None, "the minimum of a parabola has a loss"
        label = f"isoFLOP minimum, {CONFIDENCE:.0%} interval" if number == 0 else None
        axes.errorbar(curve.flops, curve.best.loss.value, yerr=_bars(curve.best.loss), label=label, **_BEST)
    axes.legend(fontsize=9)
    return _finish(axes, path, _power_of_ten)


def _draw_ratio(analysis: ScalingAnalysis, curves: Sequence[IsoflopCurve], path: Path) -> Path:
    axes = _new_axes("best number of training tokens per parameter", "training FLOPs", "tokens per parameter")
    if analysis.law is not None:
        budgets = _budgets(analysis, to=analysis.larger_budget / max(point.flops for point in analysis.points))
        ratios = [analysis.law.optimum(budget).tokens_per_param for budget in budgets]
        _plot_band(axes, budgets, ratios, label="law of parameters and tokens")
        axes.axvline(max(p.flops for p in analysis.points), color=_BLUE, linestyle=":", label="largest run")
    for number, best in enumerate(curve.best for curve in curves if curve.best is not None):
        label = f"isoFLOP minimum, {CONFIDENCE:.0%} interval" if number == 0 else None
        ratio = best.tokens_per_param
        axes.errorbar(best.flops, ratio.value, yerr=_bars(ratio), label=label, **_BEST)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=9)
    return _finish(axes, path, _power_of_ten)


def _plot_runs(axes: Axes, points: Sequence[TrainedModel], *, at: str, color: Any, **style: Any) -> None:
    """Plot each run as a dot."""
    style = {"alpha": 0.5, "markersize": 5, **style}
    axes.plot([getattr(point, at) for point in points], [point.loss for point in points], ".", color=color, **style)


def _law_of_size(law: LossLaw, size: float, points: Sequence[TrainedModel]) -> tuple[np.ndarray, np.ndarray]:
    """Return FLOPs and predicted losses of a size, around its runs."""
    tokens = np.geomspace(min(p.tokens for p in points) / _LAW_MARGIN, max(p.tokens for p in points) * _LAW_MARGIN, 60)
    params = np.full_like(tokens, size)
    return tokens * law.flops_factor * params**law.flops_exponent, law.predict(params, tokens)[0]


def _plot_band(axes: Axes, x: Sequence[float], values: Sequence[Uncertain], *, label: str) -> None:
    axes.plot(x, [value.value for value in values], color=_BLUE, label=label)
    edges = [value.interval for value in values if value.interval is not None]
    if len(edges) == len(x):
        low, high = np.array(edges).T
        axes.fill_between(x, low, high, color=_BLUE, alpha=0.15, linewidth=0, label=f"its {CONFIDENCE:.0%} interval")


def _budgets(analysis: ScalingAnalysis, *, to: float) -> list[float]:
    """Return FLOPs from the smallest run to `to` times the largest one."""
    flops = [point.flops for point in analysis.points]
    return [float(value) for value in np.geomspace(min(flops), max(flops) * to, 60)]


def _bars(value: Uncertain) -> list[list[float]] | None:
    """Return the lengths of error bars, None without an interval. The value itself may lie outside of the interval."""
    if value.interval is None:
        return None
    low, high = value.interval
    return [[max(0.0, value.value - low)], [max(0.0, high - value.value)]]


def _new_axes(title: str, x_label: str, y_label: str) -> Axes:
    axes = new_figure(*_SIZE, layout="constrained").add_subplot()
    axes.set(title=title, xlabel=x_label, ylabel=y_label, xscale="log")
    axes.grid(alpha=0.3)
    return axes


def _finish(axes: Axes, path: Path, show: Any) -> Path:
    """Label the horizontal axis, which is logarithmic, with a few numbers, and save the picture."""
    _label(axes.xaxis, axes.get_xlim(), show)
    save_figure(axes.figure, path)  # type: ignore[arg-type]  # the axes are not in a subfigure
    return path


def _label(axis: Any, limits: tuple[float, float], show: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    # Within less than two decades, powers of ten alone would be one label or none.
    axis.set_major_locator(LogLocator(subs=(1.0,) if limits[1] / limits[0] > 300 else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: show(value)))
    axis.set_minor_formatter(NullFormatter())


def _size_scale(axes: Axes, sizes: Sequence[float]) -> Any:
    """Add the scale of colours for the sizes, and return what maps a size to its colour."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, LogNorm

    colors = ListedColormap([_shade(i / 255) for i in range(256)])
    limits = sizes[0] / 1.05, sizes[-1] * 1.05
    scale = ScalarMappable(LogNorm(*limits), colors)
    bar = axes.figure.colorbar(scale, ax=axes, label="parameters")
    _label(bar.ax.yaxis, limits, _short_count)
    return scale


def _shade(share: float) -> Any:
    """Return a colour from dark to light. The lightest ones of the map would not show on white."""
    from matplotlib import colormaps

    return colormaps["viridis"](0.85 * share)


def _short_count(value: float) -> str:
    """Return `5M`, `20M`, `1.5B`."""
    text = show_count(value)
    number, unit = (text[:-1], text[-1]) if text[-1].isalpha() else (text, "")
    return (number.rstrip("0").rstrip(".") if "." in number else number) + unit


def _power_of_ten(value: float) -> str:
    """Return `1e17`, `2.5e17`."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
