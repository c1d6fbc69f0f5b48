"""Uploads a sweep to MLflow: a run above those of its cells, which upload themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nanochat.runner.display import Display
from nanochat.runner.process.interrupts import Interrupts
from nanochat.runner.report.markdown import escape
from nanochat.runner.store.provenance import this_process
from nanochat.runner.store.sweep_state import SweepState, read_sweep
from nanochat.runner.sweeps.results.cell_results import read_sweep_results
from nanochat.runner.sweeps.results.result_table import headline
from nanochat.runner.upload.build_view import RUN_STATUS
from nanochat.runner.upload.run_tags import process_tags
from nanochat.runner.upload.sweep_view import sweep_view
from nanochat.runner.upload.upload_run import uploading_views
from nanochat.runner.upload.web_page import cells_query, where_to_look
from nanochat.storage.layout import SweepFolder
from nanochat.tracking.run_view import RunView, metric_name


@contextmanager
def uploading_sweep(
    folder: SweepFolder, state: SweepState, base: Path, display: Display, interrupts: Interrupts
) -> Iterator[None]:
    """Show the sweep as running in MLflow while the block runs, and its results and report after it."""
    has_ended = False
    cells = cells_query(folder.reference, state.section.rank_by or {})
    with uploading_views(
        state.tracking,
        folder.link,
        lambda: _view(folder, state, base, has_ended=has_ended),
        list,
        display=display,
        interrupts=interrupts,
        address=lambda link: where_to_look(link, query=cells),
    ):
        try:
            yield
        finally:
            has_ended = True


def _view(folder: SweepFolder, state: SweepState, base: Path, *, has_ended: bool) -> RunView:
    tags = process_tags(state.recipe, this_process())
    if not has_ended:
        return sweep_view(folder, state, tags=tags)
    state = read_sweep(folder) or state  # a search has added cells
    sweep = read_sweep_results(folder, state, base)
    metrics = {"cells_finished": float(sum(cell.status == "finished" for cell in sweep.cells))}
    if (ranking := state.section.ranking) is not None and sweep.ranked:
        metrics[f"best/{metric_name(ranking[0])}"] = sweep.ranked[0].mean(ranking[0]) or 0.0
    description = f"**{escape(headline(sweep))}**"
    return sweep_view(folder, state, tags=tags, status=RUN_STATUS[sweep.status], metrics=metrics, headline=description)
