"""Pictures of a run: scores against chance; loss, validation and learning rate by step. Drawn without a display."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.runner.report.scores import Suite
from nanochat.storage.files import atomic_write
from nanochat.tracking.points import Point, read_points

if TYPE_CHECKING:  # imported late: drawing is the only use of matplotlib
    from matplotlib.figure import Figure

SCORES_PICTURE = "scores.png"

Curve = tuple[list[int], list[float]]
_SMOOTHING_SHARE = 50


def draw_plots(streams: Mapping[str, Path], folder: Path) -> list[Path]:
    """Draw what the metric files of the stages hold into `folder`; return the pictures, the loss curve first.

    Args:
        streams: stage name to its `metrics.jsonl`.
        folder: where `loss.png` and `learning_rate.png` go.
    """
    by_stage = {stage: _curves(read_points(path)) for stage, path in streams.items()}
    pictures: list[tuple[str, str, Callable[[str], bool]]] = [
        ("loss.png", "loss (nats per token) and bits per byte", lambda n: n.endswith(("loss", "bpb"))),
        ("learning_rate.png", "learning rate", lambda n: "lr" in n.rpartition("/")[2].split("_")),
    ]
    drawn = []
    for file, title, wanted in pictures:
        panels = {
            stage: chosen
            for stage, curves in by_stage.items()
            if (chosen := {name: curve for name, curve in curves.items() if wanted(name)})
        }
        if panels:
            _draw(folder / file, title, panels)
            drawn.append(folder / file)
    return drawn


def draw_scores(suites: Sequence[Suite], folder: Path) -> list[Path]:
    """Draw every suite that is a share of problems, with its standard error and chance; return the picture, if any."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shares = [suite for suite in suites if suite.stderr is not None]
    if not shares:
        return []
    figure = Figure(figsize=(8, 1.1 + 0.36 * len(shares)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title("share of problems solved, with two standard errors; red: guessing")
    for row, suite in enumerate(shares):
        errors = 2 * (suite.stderr or 0.0)
        axes.barh(
            row, suite.value, xerr=errors, color="#4c8bd6" if suite.stage == "base_eval" else "#3f9c6b", capsize=3
        )
        if suite.chance:
            axes.plot([suite.chance] * 2, [row - 0.4, row + 0.4], color="#c0392b", linewidth=2)
    axes.set_yticks(range(len(shares)), [f"{suite.stage} {suite.name}" for suite in shares])
    axes.set_xlim(0, 1)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    _save(figure, folder / SCORES_PICTURE)
    return [folder / SCORES_PICTURE]


def _curves(points: Sequence[Point]) -> dict[str, Curve]:
    curves: dict[str, Curve] = defaultdict(lambda: ([], []))
    for point in points:
        curves[point.name][0].append(point.step)
        curves[point.name][1].append(point.value)
    return dict(curves)


def _draw(path: Path, title: str, panels: Mapping[str, Mapping[str, Curve]]) -> None:
    # The object interface needs no global backend, so nothing depends on a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = 6.4 * len(panels)
    figure = Figure(figsize=(width, 4))
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    figure.subplots_adjust(left=0.6 / width, right=1 - 0.2 / width, bottom=0.14, top=0.85, wspace=0.15)
    for number, (stage, curves) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), number)
        axes.set_title(stage)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        for name, (steps, values) in curves.items():
            if len(steps) > 2 * _SMOOTHING_SHARE:
                line = axes.plot(steps, values, alpha=0.25)[0]
                axes.plot(steps, _smooth(values), label=name, color=line.get_color())
            else:
                axes.plot(steps, values, marker="o", markersize=3, label=name)
        axes.legend()
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as scratch:
        figure.savefig(scratch, dpi=110, metadata={"Software": None})


def _smooth(values: Sequence[float]) -> list[float]:
    """Return an exponential moving average over about a fiftieth of the curve, corrected for its start."""
    decay = 1 - _SMOOTHING_SHARE / len(values)
    average, weight, smooth = 0.0, 0.0, []
    for value in values:
        average = decay * average + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        smooth.append(average / weight)
    return smooth
