"""MLflow beside a run: starts the uploader, waits for it at the end, and says where to look."""

from __future__ import annotations

import time
from pathlib import Path

from nanochat.recipe.schema.execution_sections import Tracking
from nanochat.runner.display import Display
from nanochat.runner.process.interrupts import Interrupts
from nanochat.runner.store import provenance
from nanochat.runner.store.record import RunTracking
from nanochat.runner.upload.build_view import pending_views, run_view
from nanochat.storage.layout import RunFolder
from nanochat.tracking.link import Link, read_link
from nanochat.tracking.store import database_path, resolve_uri, show_uri
from nanochat.tracking.uploader import Uploader

CLOSE_SECONDS = 30.0
_SLICE_SECONDS = 0.2
UI_ADDRESS = "http://127.0.0.1:5000"


def tracking_of(section: Tracking, folder: Path) -> RunTracking:
    """Return where a run is shown; `folder` is where a SQLite store goes by default."""
    if section.kind == "none":
        return RunTracking(kind="none")
    uri = resolve_uri(section.uri, folder)
    return RunTracking(kind="mlflow", uri=uri, experiment=section.experiment, tags=dict(section.tags))


def start_upload(folder: RunFolder, tracking: RunTracking, base: Path) -> Uploader | None:
    """Start sending a run to MLflow, earlier unsent runs of this machine too; None where nothing is tracked."""
    if tracking.kind == "none" or tracking.uri is None:
        return None
    uri, experiment = tracking.uri, tracking.experiment
    uploader = Uploader(
        uri,
        experiment,
        view=lambda: run_view(folder, base),
        pending=lambda: pending_views(base, uri, experiment, without=folder),
        host=provenance.host_name(),
        is_alive=provenance.is_alive,
    )
    uploader.start()
    return uploader


def finish_upload(uploader: Uploader | None, folder: RunFolder, display: Display, interrupts: Interrupts) -> None:
    """Send the rest, and say where the run is shown, or that it will be; a second signal ends the waiting."""
    if uploader is None:
        return
    uploader.stop()
    deadline = time.monotonic() + CLOSE_SECONDS
    while not uploader.join(_SLICE_SECONDS):
        if time.monotonic() > deadline or interrupts.count > 1:
            break
    problem = uploader.problem
    if problem is not None:
        display.log_line(f"tracking: not everything could be sent: {problem}")
        display.log_line("tracking: it is kept in local files; the next run sends it")
    elif (link := read_link(folder.link)) is not None:
        display.log_line(f"MLflow: {where_to_look(link)}")


def where_to_look(link: Link) -> str:
    """Return the address of a run's page, in MLflow's view for training, and how to have a server there."""
    page = f"#/experiments/{link.experiment_id}/runs/{link.run_id}?workflowType=machine_learning"
    if database_path(link.uri) is None:
        return f"{show_uri(link.uri).rstrip('/')}/{page}"
    return f"`just ui` (or `nanochat-run ui`), then {UI_ADDRESS}/{page}"
