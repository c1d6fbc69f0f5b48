"""Plots of a run: scores compared with guessing, and loss, reward and learning rate by step.

`new_figure` and `save_figure` also serve the pictures of comparisons, sweeps and scaling laws. No plot needs a display.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nanochat.runner.report.scores import SuiteScore
from nanochat.storage.files import atomic_write
from nanochat.storage.series import SUITE_PREFIX, TRAIN_LOSS, TRAIN_REWARD
from nanochat.tracking.points import read_points

if TYPE_CHECKING:  # imported only when something is drawn, because it takes long
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCORES_PLOT = "scores.png"
REWARD_PLOT = "reward.png"

Curve = tuple[list[int], list[float]]
_SMOOTHING_SHARE = 50
"""Curves are averaged over this fraction (one fiftieth) of their points."""
_DPI = 110


def new_figure(width: float, height: float, *, layout: Literal["constrained"] | None = None) -> Figure:
    """Return an empty figure of this size in inches."""
    # Unlike pyplot, the object interface does not choose a backend that may need a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG file, whole or not at all. The same figure always gives the same file."""
    with atomic_write(path) as scratch:
        figure.savefig(scratch, dpi=_DPI, metadata={"Software": None})


def draw_curves(streams: Mapping[str, Path], folder: Path) -> list[Path]:
    """Draw `loss.png`, `reward.png`, `suites.png` and `learning_rate.png` into `folder`, if there is something to draw.

    Bits per byte of suites during training are in the first picture, their other scores are in the third.

    Returns their paths. `streams` holds the `metrics.jsonl` of each stage by its name.
    """
    by_stage = {stage: read_curves(path) for stage, path in streams.items()}
    for curves in by_stage.values():
        if TRAIN_REWARD in curves:  # its loss says nothing: it is near 0 before and after
            curves.pop(TRAIN_LOSS, None)
    plots: list[tuple[str, str, Callable[[str], bool]]] = [
        ("loss.png", "loss (nats per token) and bits per byte", lambda n: n.endswith(("loss", "bpb"))),
        (REWARD_PLOT, "mean reward, and score on held-out questions", lambda n: n in (TRAIN_REWARD, "held_out/score")),
        ("suites.png", "scores of suites during training", _is_score),
        ("learning_rate.png", "learning rate", lambda n: "lr" in n.rpartition("/")[2].split("_")),
    ]
    drawn = []
    for file, title, is_shown in plots:
        panels = {stage: {n: curve for n, curve in curves.items() if is_shown(n)} for stage, curves in by_stage.items()}
        if panels := {stage: curves for stage, curves in panels.items() if curves}:
            _draw(folder / file, title, panels)
            drawn.append(folder / file)
    return drawn


def _is_score(name: str) -> bool:
    return name.startswith(SUITE_PREFIX) and not name.endswith(("loss", "bpb", ".stderr"))


def draw_scores(suites: Sequence[SuiteScore], folder: Path) -> list[Path]:
    """Draw every score that is a share of problems into `scores.png` and return its path, if there are any."""
    shares = [suite for suite in suites if suite.score.stderr is not None]
    if not shares:
        return []
    figure = new_figure(8, 1.1 + 0.36 * len(shares), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title("share of problems solved ± two standard errors; red line: score of a guess")
    for row, score in enumerate(suite.score for suite in shares):
        color = "#4c8bd6" if score.stage == "base_eval" else "#3f9c6b"
        axes.barh(row, score.value, xerr=2 * (score.stderr or 0.0), color=color, capsize=3)
        if score.chance:
            axes.plot([score.chance] * 2, [row - 0.4, row + 0.4], color="#c0392b", linewidth=2)
    axes.set_yticks(range(len(shares)), [suite.label for suite in shares])
    axes.set_xlim(0, 1)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    save_figure(figure, folder / SCORES_PLOT)
    return [folder / SCORES_PLOT]


def read_curves(stream: Path) -> dict[str, Curve]:
    """Return the steps and values of each metric in a `metrics.jsonl`."""
    curves: dict[str, Curve] = defaultdict(lambda: ([], []))
    for point in read_points(stream):
        curves[point.name][0].append(point.step)
        curves[point.name][1].append(point.value)
    return dict(curves)


def _draw(path: Path, title: str, panels: Mapping[str, Mapping[str, Curve]]) -> None:
    width = 6.4 * len(panels)
    figure = new_figure(width, 4)
    figure.suptitle(title)
    figure.subplots_adjust(left=0.6 / width, right=1 - 0.2 / width, bottom=0.14, top=0.85, wspace=0.15)
    for number, (stage, curves) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), number)
        axes.set(title=stage, xlabel="step")
        axes.grid(alpha=0.3)
        for color, (name, curve) in enumerate(curves.items()):
            draw_curve(axes, curve, name, color=color)
        axes.legend()
    save_figure(figure, path)


def draw_curve(axes: Axes, curve: Curve, label: str, *, color: int) -> None:
    """Draw a curve in one of ten colours: single values pale and their average strong, or a few values with marks."""
    (steps, values), shade = curve, f"C{color % 10}"
    if (averages := smooth(values)) is None:
        axes.plot(steps, values, color=shade, marker="o", markersize=3, label=label)
        return
    axes.plot(steps, values, color=shade, alpha=0.25, linewidth=0.8)
    axes.plot(steps, averages, color=shade, label=label)


def smooth(values: Sequence[float]) -> list[float] | None:
    """Return an exponential moving average, corrected for the bias at its start. None for a few values."""
    if len(values) <= 2 * _SMOOTHING_SHARE:
        return None
    decay = 1 - _SMOOTHING_SHARE / len(values)
    average, weight, averages = 0.0, 0.0, []
    for value in values:
        average = decay * average + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        averages.append(average / weight)
    return averages
