"""One HTML page that compares several runs: their results, their recipes, and their curves in the same plots."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from nanochat.plurals import several
from nanochat.runner.report.comparison import compare_runs, render_comparison
from nanochat.runner.report.html import render_html
from nanochat.runner.report.markdown import escape
from nanochat.runner.report.plots import Curve, draw_curve, new_figure, read_curves, save_figure
from nanochat.runner.store.run_catalog import Run

_CURVES = ("loss", "bpb")
"""The endings of the metrics that are drawn: lower is better for both."""
_MAX_PICTURES = 12
_EXPLAINED = "Pale lines are single values and strong ones averages. Lower is better."


def comparison_page(runs: Sequence[Run], base: Path) -> str:
    """Return the page. Runs have the same colour in all pictures; they are named by their references."""
    curves = {run.reference: _curves(run, base) for run in runs}
    names = list(dict.fromkeys(name for of_run in curves.values() for name in of_run))[:_MAX_PICTURES]
    with tempfile.TemporaryDirectory(prefix="nanochat-compare-") as folder:
        pictures = {}
        for number, name in enumerate(names):
            path = Path(folder) / f"{number}.png"
            _draw(path, name, {reference: of_run.get(name) for reference, of_run in curves.items()})
            pictures[path.name] = path
        parts = ["# Comparison", f"{several(len(runs), 'run')}: {', '.join(escape(run.reference) for run in runs)}"]
        parts += ["## Results and recipes", render_comparison(compare_runs(runs, base))]
        if pictures:
            parts += ["## Learning curves", _EXPLAINED, *(f"![{n}]({p})" for n, p in zip(names, pictures, strict=True))]
        return render_html("\n\n".join(parts) + "\n", pictures)


def _curves(run: Run, base: Path) -> dict[str, Curve]:
    """Return the curves of a run by stage and metric, as far as its results are here."""
    lost = run.lost(base)
    curves: dict[str, Curve] = {}
    for stage, folder in run.folders(base).items():
        if stage not in lost and folder.metrics.is_file():
            of_stage = read_curves(folder.metrics)
            curves |= {f"{stage} {name}": curve for name, curve in of_stage.items() if name.endswith(_CURVES)}
    return curves


def _draw(path: Path, name: str, curves: Mapping[str, Curve | None]) -> None:
    figure = new_figure(9, 4, layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=name, xlabel="step")
    axes.grid(alpha=0.3)
    for number, (reference, curve) in enumerate(curves.items()):
        if curve is not None:
            draw_curve(axes, curve, reference, color=number)
    axes.legend(fontsize="small")
    save_figure(figure, path)
