"""Connects to an MLflow tracking store. MLflow is imported when a store is opened, not before."""

from __future__ import annotations

import json
import socket
import sqlite3
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from nanochat import runtime
from nanochat.errors import NanochatError
from nanochat.plurals import several
from nanochat.storage.files import move_into_place
from nanochat.storage.locking import folder_lock
from nanochat.tracking.database import (
    ARTIFACTS_FOLDER,
    LOCK_SECONDS,
    artifact_folder,
    find_moved_artifacts,
    url_for_mlflow,
)
from nanochat.tracking.run_view import HEADLINE_METRICS
from nanochat.tracking.store_address import SERVER_PORTS, database_path, show_uri, with_credentials

if TYPE_CHECKING:
    from mlflow.entities import Experiment
    from mlflow.tracking import MlflowClient

# By default MLflow prints a lot, and retries for minutes if a server is down.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    # A request that was only slow would be done twice.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_PROBE_SECONDS = LOCK_SECONDS
_REASON_CHARS = 400
_REFUSALS = (400, 413, 422)
"""Status codes of HTTP: the request is invalid, too large, or makes no sense."""
_PAGE_RUNS = 1000
VIEW = "nanochat"
"""The name of the view of the table of runs that shows the most important results. Without it MLflow hides all
metrics."""
_VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
_CREATING = ".mlflow.creating-"


class TrackingOutageError(NanochatError):
    """The tracking store cannot be reached or refuses the request. What was not uploaded stays in local files."""


class StoreRefusalError(NanochatError):
    """The store understood a request and refuses it: it would refuse the same request again."""


@dataclass(frozen=True)
class Store:
    """An open store, and the experiment that runs are uploaded to."""

    client: MlflowClient
    uri: str
    experiment: str
    experiment_id: str
    notice: str = ""
    """What opening the store changed in it, for the user."""


def open_store(uri: str, experiment: str) -> Store:
    """Connect to a store, and create the database and the experiment on first use. Raises TrackingOutageError."""
    for name, value in _ENVIRONMENT.items():
        if runtime.environment(name) is None:
            runtime.set_environment(name, value)
    probe(uri)
    path = database_path(uri)
    with raise_outages(uri), nullcontext() if path is None else folder_lock(path.parent):
        from mlflow.tracking import MlflowClient

        if path is not None:
            _create_database(path)
            find_moved_artifacts(path)
        client = MlflowClient(tracking_uri=with_credentials(uri) if path is None else url_for_mlflow(path))
        existing = client.get_experiment_by_name(experiment)
        if existing is None:
            location = None if path is None else artifact_folder(path, experiment).as_uri()
            number = str(client.create_experiment(experiment, location))
            client.set_experiment_tag(number, _VIEW_TAG, _view())
            return Store(client, uri, experiment, number)
        notice = _restore(client, existing) if existing.lifecycle_stage == "deleted" else ""
        if existing.tags.get(_VIEW_TAG) != _view():
            client.set_experiment_tag(existing.experiment_id, _VIEW_TAG, _view())
        return Store(client, uri, experiment, str(existing.experiment_id), notice)


def _view() -> str:
    """Return the columns that MLflow's table of runs shows, in the form in which its page shares them."""
    columns = ["attributes.`Dataset`", *(f"metrics.`{name}`" for name in HEADLINE_METRICS)]
    return json.dumps({"selectedColumns": columns})


def _restore(client: MlflowClient, experiment: Experiment) -> str:
    """Restore a deleted experiment, since MLflow keeps its name taken, and return what else that restores."""
    from mlflow.entities import ViewType

    count, token = 0, None
    while token is None or token:
        page = client.search_runs(
            [experiment.experiment_id], run_view_type=ViewType.DELETED_ONLY, max_results=_PAGE_RUNS, page_token=token
        )
        count, token = count + len(page), page.token or ""
    client.restore_experiment(experiment.experiment_id)
    runs = f"{several(count, 'deleted run')} in it"
    return f"the experiment `{experiment.name}` was deleted; it is restored, and MLflow restored the {runs} as well"


def probe(uri: str) -> None:
    """Raise TrackingOutageError if a store is certainly unreachable, instead of letting MLflow retry for a minute."""
    path, parts = database_path(uri), urlsplit(uri)
    try:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(path, timeout=_PROBE_SECONDS)) as database:
                database.execute("pragma schema_version")
        elif (
            parts.hostname is not None
            and parts.scheme in SERVER_PORTS
            and not _is_proxied(parts.scheme, parts.hostname)
        ):
            port = parts.port or SERVER_PORTS[parts.scheme]
            socket.create_connection((parts.hostname, port), timeout=_PROBE_SECONDS).close()
    except (sqlite3.Error, OSError) as error:
        raise TrackingOutageError(f"{show_uri(uri)}: {error}") from error


def _is_proxied(scheme: str, host: str) -> bool:
    return scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host)


@contextmanager
def raise_outages(uri: str) -> Iterator[None]:
    """Convert the errors of a store that is down, busy or full into TrackingOutageError."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise TrackingOutageError(f"{show_uri(uri)}: {reason_of(error, uri)}") from error


@contextmanager
def raise_refusals(uri: str) -> Iterator[None]:
    """Convert errors that mean that the store refuses the request itself into StoreRefusalError."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import HTTPError

    try:
        yield
    except (MlflowException, HTTPError) as error:
        if isinstance(error, MlflowException):
            code = error.get_http_status_code()  # type: ignore[no-untyped-call]
        else:
            code = None if error.response is None else error.response.status_code
        if code not in _REFUSALS:
            raise
        raise StoreRefusalError(reason_of(error, uri)) from error


def reason_of(error: Exception, uri: str) -> str:
    """Return the useful part of an error, without secrets: requests wraps it in the address and class names."""
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return line.rpartition("Caused by ")[2].replace(with_credentials(uri), uri)[:_REASON_CHARS]


def _create_database(path: Path) -> None:
    """Create the database of a SQLite store atomically, if it does not exist.

    MLflow needs seconds to create the tables, and cannot open a database whose creation was killed. The caller must
    hold the lock of the folder, since MLflow's migrations are not safe to run twice.
    """
    if path.exists() and path.stat().st_size:  # `probe` leaves an empty file
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for leftover in path.parent.glob(f"{_CREATING}*"):
        leftover.unlink()
    # Every attempt uses a new name, because MLflow caches connections by file name.
    scratch = path.with_name(f"{_CREATING}{time.time_ns()}")
    # MLflow's own experiment "Default" is created here, with its files in this folder.
    store = SqlAlchemyStore(url_for_mlflow(scratch), (path.parent / ARTIFACTS_FOLDER).as_uri())  # type: ignore[no-untyped-call]
    store.engine.dispose()
    move_into_place(scratch, path)
