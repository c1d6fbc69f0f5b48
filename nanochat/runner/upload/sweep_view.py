"""Builds what MLflow should show about a sweep: a run above those of its cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from nanochat.recipe.sweeps.cells import show_value
from nanochat.recipe.sweeps.labels import SEED, short_names
from nanochat.runner.report.markdown import code_span, join_parts, paragraphs
from nanochat.runner.store.run_state import RunState
from nanochat.runner.store.sweep_state import SweepState, sweep_of
from nanochat.storage.layout import RunFolder, SweepFolder
from nanochat.tracking.run_view import SWEEP_TAG, Artifact, RunView, Status, metric_name


def sweep_view(
    folder: SweepFolder,
    state: SweepState,
    *,
    tags: Mapping[str, str],
    status: Status = "RUNNING",
    metrics: Mapping[str, float] | None = None,
    headline: str = "",
) -> RunView:
    """Return how MLflow should show a sweep. `tags` are those that each run of this process has.

    While the sweep is running it has no results and no files.
    """
    return RunView(
        name=state.name,
        link=folder.link,
        status=status,
        description=_describe(folder, state, headline),
        tags={**state.tracking.tags, **tags},
        params={"cells": str(len(state.cells)), **_section_params(state)},
        metrics=dict(metrics or {}),
        artifacts=report_artifacts(folder) if status != "RUNNING" else (),
        started=state.created,
    )


def report_artifacts(folder: RunFolder | SweepFolder, *others: Path) -> tuple[Artifact, ...]:
    """Return the report, the recipe, the plan and the plots of a run or a sweep, and `others`, as far as they exist."""
    files = (folder.report_page, folder.report, folder.recipe, folder.resolved, folder.plan_text, *others)
    return (
        *(Artifact(path=path) for path in files if path.is_file()),
        *(Artifact(path=path, folder=folder.plots.name) for path in sorted(folder.plots.glob("*.png"))),
    )


def as_cell(view: RunView, run: RunState, base: Path, *, tags: Mapping[str, str]) -> RunView:
    """Return the view of a run as MLflow should show it below its sweep; unchanged if it is not a cell.

    Its parameters are the swept fields and nothing else, and the result that ranks the cells is its first metric: these
    are the axes with which MLflow's charts begin. While it runs, the others wait for that one. The sweep is a tag, so
    that its cells can be searched.
    """
    found = sweep_of(run.sweep, base)
    if found is None:
        return view
    cells = (x for x in found[1].cells if x.run == run.name and x.plan_digest == run.plan_digest)
    values = next((cell.values for cell in cells), {})
    names = short_names(list(values))
    ranking = [metric_name(result) for result in found[1].section.rank_by or {}]
    is_early = view.status == "RUNNING" and not all(name in view.metrics for name in ranking)
    return replace(
        view,
        params={names[path]: show_value(value) for path, value in values.items()} or view.params,
        metrics={
            name: view.metrics[name] for name in (*ranking, *view.metrics) if name in view.metrics and not is_early
        },
        tags={SEED: str(run.seed), **view.tags, SWEEP_TAG: run.sweep},
        parent=sweep_view(*found, tags=tags),
    )


def _section_params(state: SweepState) -> dict[str, str]:
    paths = list(state.cells[0].values) if state.cells else []
    values = {path: sorted({show_value(cell.values[path]) for cell in state.cells}) for path in paths}
    ranking = " ".join(f"{metric} {order}" for metric, order in (state.section.rank_by or {}).items())
    shown = {f"sweep.{path}": " | ".join(words) for path, words in values.items()}
    return shown | ({"rank_by": ranking} if ranking else {})


def _describe(folder: SweepFolder, state: SweepState, headline: str) -> str:
    search = f'tags.{SWEEP_TAG} = "{folder.reference}"'
    parts = [
        headline,
        paragraphs(state.description),
        f"The cells of this sweep alone: search for {code_span(search)}.",
        "Ranking, effects and learning curves: open `report.html` under Artifacts.",
        f"Command: {code_span(state.command)}",
    ]
    return join_parts(parts)
