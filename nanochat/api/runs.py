"""A run on this machine, its results and its curves."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nanochat import runtime

if TYPE_CHECKING:  # the runner takes long to import, and `import nanochat` should not
    from nanochat.runner.store.run_catalog import Run as StoredRun

_FRAME = '<iframe srcdoc="{}" sandbox="" style="width: 100%; height: 640px; border: 1px solid #ccc"></iframe>'


class Series(NamedTuple):
    """A metric by step. `plot(*series)` draws it."""

    steps: list[int]
    values: list[float]


class Run:
    """A run of a recipe. It shows its report in a notebook. Results are read from disk whenever they are asked for."""

    def __init__(self, stored: StoredRun, base_dir: Path) -> None:
        """Use `nanochat.run` or `nanochat.find_run` instead."""
        self._stored, self._base = stored, base_dir

    @property
    def name(self) -> str:
        """The name in the recipe."""
        return self._stored.state.name

    @property
    def reference(self) -> str:
        """NAME/TIME, by which all commands and functions find this run."""
        return self._stored.reference

    @property
    def folder(self) -> Path:
        """The folder with the recipe, the plan and the report of the run."""
        return self._stored.folder.path

    @property
    def status(self) -> str:
        """`finished`, `failed`, `interrupted` or `running`."""
        return self._stored.state.status

    @property
    def metrics(self) -> Mapping[str, float]:
        """The results of the finished stages, by names such as `base_eval.bpb`, which `expect` uses too."""
        from nanochat.runner.report.results import metrics_by_name

        return metrics_by_name(self._stored.records(self._base))

    @property
    def series(self) -> Mapping[str, Series]:
        """The metrics by step of all stages that have begun, by names such as `pretrain.train/loss`."""
        from nanochat.tracking.points import read_points

        series: dict[str, Series] = {}
        for stage, folder in self._stored.folders(self._base).items():
            for point in [*read_points(folder.metrics), *read_points(folder.timings)]:
                steps, values = series.setdefault(f"{stage}.{point.name}", Series([], []))
                steps.append(point.step)
                values.append(point.value)
        return series

    @property
    def report_html(self) -> str:
        """The report as a page of its own, with its pictures."""
        from nanochat.runner.report.refresh import refresh_report

        page = self._stored.folder.report_page
        if not page.is_file():
            refresh_report(self._stored, self._base)
        return page.read_text(encoding="utf-8")

    def _repr_html_(self) -> str:
        return _FRAME.format(html.escape(self.report_html))

    def __repr__(self) -> str:
        """Return the name, the time and the status."""
        return f"<nanochat.Run {self.reference}: {self.status}>"


def find_run(run: str | Path, *, base_dir: str | Path | None = None) -> Run:
    """Return a run of this machine.

    Args:
        run: NAME (its latest run), NAME/TIME, or the folder of a run.
        base_dir: the folder with the results of all runs. Default: `NANOCHAT_BASE_DIR` or `~/.cache/nanochat`.

    Raises:
        RecipeError: there is no such run.
    """
    from nanochat.runner.store import run_catalog

    base = runtime.base_dir(base_dir)
    return Run(run_catalog.find_run(str(run), base), base)
