"""Uploads a run to MLflow in the background, waits for the upload at the end, and shows where to look at the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from nanochat.recipe.schema.execution_sections import Tracking
from nanochat.runner.display import Display
from nanochat.runner.process.interrupts import Interrupts
from nanochat.runner.store import provenance
from nanochat.runner.store.run_catalog import Run
from nanochat.runner.store.run_state import RunTracking
from nanochat.runner.upload.build_view import is_in_store, pending_views, run_view
from nanochat.runner.upload.web_page import where_to_look
from nanochat.storage.layout import RunFolder
from nanochat.tracking.link import Link, read_link
from nanochat.tracking.mlflow_store import VIEW
from nanochat.tracking.run_view import RunView
from nanochat.tracking.store_address import resolve_experiment, resolve_uri
from nanochat.tracking.uploader import Uploader

CLOSE_SECONDS = 30.0
"""The longest time that a run waits for MLflow at its end."""
_POLL_SECONDS = 0.2


def tracking_of(section: Tracking, folder: Path) -> RunTracking:
    """Return where to upload a run. A SQLite store is created in `folder` by default."""
    if section.kind == "none":
        return RunTracking(kind="none")
    uri, experiment = resolve_uri(section.uri, folder), resolve_experiment(section.experiment)
    return RunTracking(
        kind=section.kind,
        uri=uri,
        experiment=experiment,
        tags=section.tags,
        registered_name=section.register,
        upload_weights=section.upload_weights,
    )


def uploading(
    folder: RunFolder, tracking: RunTracking, base: Path, display: Display, interrupts: Interrupts, *, is_cell: bool
) -> AbstractContextManager[None]:
    """Upload a run while the block runs, and what earlier runs on this machine could not upload.

    The address of a cell is not shown: the sweep that it belongs to shows its own.
    """
    return uploading_views(
        tracking,
        folder.link,
        lambda: run_view(folder, base),
        lambda: pending_views(base, tracking, without=folder),
        display=display,
        interrupts=interrupts,
        address=None if is_cell else _pages,
    )


@contextmanager
def uploading_views(
    tracking: RunTracking,
    link: Path,
    view: Callable[[], RunView],
    pending: Callable[[], Sequence[RunView]],
    *,
    display: Display,
    interrupts: Interrupts,
    address: Callable[[Link], str] | None,
) -> Iterator[None]:
    """Upload a view while the block runs, and `pending` ones, unless the recipe turns MLflow off.

    However the block ends, the rest is uploaded after it, so that MLflow shows the end. Then the `address` is shown.
    """
    if tracking.kind == "none" or tracking.uri is None:
        yield
        return
    uploader = Uploader(
        tracking.uri,
        tracking.experiment,
        view=view,
        pending=pending,
        machine=provenance.machine_id(),
        is_alive=provenance.is_alive,
    )
    uploader.start()
    try:
        yield
    finally:
        _finish(uploader, link, display, interrupts, address=address)


def upload_rest(
    run: Run,
    base: Path,
    display: Display,
    problems: Sequence[str],
    *,
    handle_signals: Callable[[], AbstractContextManager[Interrupts]],
    is_cell: bool,
) -> None:
    """Upload what the store lacks of a run whose stages are all cached. Show where it is, or why it is not uploaded.

    `problems` are the reasons why the run cannot be logged at all.
    """
    tracking, link = run.state.tracking, read_link(run.folder.link)
    if problems:
        for problem in problems:
            display.log_line(f"MLflow: not uploaded: {problem.removeprefix('tracking: ')}")
    elif is_in_store(run, base) and link is not None:
        if not is_cell:
            _show(_pages(link), display)
    else:
        with (
            handle_signals() as interrupts,
            uploading(run.folder, tracking, base, display, interrupts, is_cell=is_cell),
        ):
            pass


def _finish(
    uploader: Uploader, link: Path, display: Display, interrupts: Interrupts, *, address: Callable[[Link], str] | None
) -> None:
    """Upload the rest and show the run's address, or why it is not uploaded yet.

    A second signal stops the waiting. The files of a model may take as long as they need.
    """
    uploader.stop()
    polls = round(CLOSE_SECONDS / _POLL_SECONDS)  # without a clock, which runs on while the run is suspended
    shown = ""
    while polls > 0 and not uploader.join(_POLL_SECONDS) and interrupts.count <= 1:
        if (file := uploader.file_on_its_way) is None:
            polls -= 1
        elif file != shown:
            shown = file
            display.log_line(f"MLflow: uploading {file}; Ctrl-C twice leaves that to the next run")
    for notice in uploader.notices:
        display.log_line(f"MLflow: {notice}")
    if (problem := uploader.problem) is not None:
        display.log_line(f"MLflow: not everything could be uploaded: {problem}")
        display.log_line("MLflow: the rest is kept in local files, and the next run uploads it")
    elif address is not None and (uploaded := read_link(link)) is not None:
        _show(address(uploaded), display)


def _pages(link: Link) -> str:
    """Return the address of a run, and a line with that of the table of all runs."""
    return f"{where_to_look(link)}\nall runs: {where_to_look(link, query=f'viewStateShareKey={VIEW}')}"


def _show(addresses: str, display: Display) -> None:
    for line in addresses.splitlines():
        display.log_line(f"MLflow: {line}")
