"""Finds the web page of an MLflow store: the address of a server, or the command that serves a database.

If there is nothing to see, the error says where the runs of this machine are, and how to look at them.
"""

from __future__ import annotations

import shlex
import socket
import sqlite3
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

from nanochat.errors import PreflightError
from nanochat.recipe.check.tracking_values import DATABASE_FILE, LAST_PORT, MLFLOW_PORT, SQLITE
from nanochat.runner.store.run_catalog import Run, list_runs
from nanochat.tracking.database import ARTIFACTS_FOLDER, find_moved_artifacts, url_for_mlflow
from nanochat.tracking.link import Link
from nanochat.tracking.mlflow_store import TrackingOutageError, probe
from nanochat.tracking.run_view import SWEEP_TAG, metric_name
from nanochat.tracking.store_address import (
    SERVER_PORTS,
    database_path,
    resolve_uri,
    show_uri,
    sqlite_uri,
    with_credentials,
)

_PORTS_TO_TRY = 50
_HOST = "127.0.0.1"
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
_DATABRICKS = "databricks"
_WORKSPACE = "your Databricks workspace: open its page `Experiments`"
_VIEW = "?workflowType=machine_learning"
"""Without this parameter the page opens in a mode for language applications, which hides the runs."""
# By default `mlflow ui` starts 15 processes that use 2.4 GB. With these settings it starts 2 that use 0.5 GB.
_SMALL_SERVER = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "PYTHONSAFEPATH": "1",  # modules in the folder of the database must not replace Python's
}


@dataclass(frozen=True)
class PageServer:
    """A program that serves the page. `folder` is its working directory, `notice` a line for the user."""

    command: list[str]
    environment: dict[str, str]
    folder: Path
    notice: str


def page_on_server(uri: str) -> str | None:
    """Return the address of the page if the store is itself a server, else None.

    Raises PreflightError if the server does not answer, or the page can only be found by its owner.
    """
    parts = urlsplit(uri)
    if uri.partition(":")[0] == _DATABRICKS:
        raise PreflightError(f"the results are in {_WORKSPACE}")
    if parts.scheme not in SERVER_PORTS:
        return None
    try:
        probe(uri)
    except TrackingOutageError as error:
        remedy = "the results of a run are also in its report: `nanochat-run report RUN`"
        if parts.hostname in _LOCAL_HOSTS:
            port, has_database = parts.port or SERVER_PORTS[parts.scheme], Path(DATABASE_FILE).exists()
            command = f"nanochat-run ui --uri {SQLITE}{DATABASE_FILE}" if has_database else "mlflow server"
            remedy = f"start it in another terminal, for example with `{command} --port {port}`; {remedy}"
        raise PreflightError(f"the results are on a server that does not answer: {error}; {remedy}") from error
    return f"{show_uri(uri).rstrip('/')}/{_VIEW}"


def page_server(uri: str, port: int | None, base: Path) -> PageServer:
    """Return the server for the page of a database on a port, or on the first free port from `MLFLOW_PORT`.

    Raises PreflightError if there is no such database or the port is taken.
    """
    database = database_path(uri)
    if database is not None:
        _check_database(database, base)
    chosen = _free_port(MLFLOW_PORT) if port is None else port
    if not _is_free(chosen):
        command = f"{_ui_command(uri)} --port {_free_port(chosen)}"
        raise PreflightError(f"port {chosen} is in use; use another one: `{command}`")
    options = ["--port", str(chosen), "--workers", "1"]
    environment, folder = {**_SMALL_SERVER, "MLFLOW_BACKEND_STORE_URI": with_credentials(uri)}, Path.cwd()
    if database is not None:
        # A relative path works with any name of the folder.
        is_plain = url_for_mlflow(Path(database.name)) == f"{SQLITE}{database.name}"
        environment["MLFLOW_BACKEND_STORE_URI"] = f"{SQLITE}{database.name}" if is_plain else url_for_mlflow(database)
        options += ["--artifacts-destination", f"./{ARTIFACTS_FOLDER}"]
        folder = database.parent
    notice = f"open http://{_HOST}:{chosen}/{_VIEW} (Ctrl-C stops the server)"
    if port is None and chosen != MLFLOW_PORT:
        notice += f"\nport {MLFLOW_PORT} is in use: replace it by {chosen} in the addresses that runs print"
    return PageServer([sys.executable, "-m", "mlflow", "ui", *options], environment, folder, notice)


def cells_query(sweep: str, ranking: Mapping[str, str]) -> str:
    """Return the part of an address that shows the cells of a sweep alone, the best first, in the table of runs."""
    query = {"searchFilter": f'tags.{SWEEP_TAG} = "{sweep}"'}
    for metric, order in ranking.items():
        query |= {"orderByKey": f"metrics.`{metric_name(metric)}`", "orderByAsc": str(order == "min").lower()}
    return urlencode(query, quote_via=quote)


def where_to_look(link: Link, *, query: str = "") -> str:
    """Return the address of a run's page in MLflow, with the command that starts a server if the store is a file.

    With a `query`, it is the address of the table of all runs of the experiment that it selects.
    """
    page = f"#/experiments/{link.experiment_id}/runs" + (f"{_VIEW}&{query}" if query else f"/{link.run_id}{_VIEW}")
    if urlsplit(link.uri).scheme in SERVER_PORTS:
        return f"{show_uri(link.uri).rstrip('/')}/{page}"
    if link.uri.partition(":")[0] == _DATABRICKS:
        return f"experiment {link.experiment}, in {_WORKSPACE}"
    return f"`{_ui_command(link.uri)}`, then http://{_HOST}:{MLFLOW_PORT}/{page}"


def _ui_command(uri: str) -> str:
    """Return the command that shows a store from the working directory."""
    is_default = uri == resolve_uri(None, Path.cwd())
    return "nanochat-run ui" if is_default else f"nanochat-run ui --uri {shlex.quote(uri)}"


def _check_database(database: Path, base: Path) -> None:
    if not database.exists() or not database.stat().st_size:  # looking for a database may leave an empty file
        raise PreflightError(f"there is no database {database}; {_where_runs_are(list_runs(base), database)}")
    try:
        find_moved_artifacts(database)
    except sqlite3.OperationalError:
        pass  # it is in use or must not be written: the page still shows what is where it was
    except sqlite3.DatabaseError as error:
        raise PreflightError(f"{database} cannot be read: {error}") from error


def _where_runs_are(runs: list[Run], missing: Path) -> str:
    """Return where the runs of this machine are logged, latest first, each with a command that does not fail."""
    logged = [run.state.tracking.uri for run in reversed(runs) if run.state.tracking.uri is not None]
    counts = {uri: logged.count(uri) for uri in logged if _exists(uri)}
    if counts:
        lines = (f"  {_ui_command(uri)}   ({count} run{'s' * (count > 1)})" for uri, count in counts.items())
        return "\n".join(["the runs of this machine are logged elsewhere:", *lines])
    if sqlite_uri(missing) in logged:
        run = next(run for run in reversed(runs) if run.state.tracking.uri == sqlite_uri(missing))
        return f"it was deleted or moved; to log the run {run.reference} again, repeat `{run.state.command}`"
    if runs:
        return "no run of this machine is logged to MLflow; see its results with `nanochat-run report RUN`"
    return "run a recipe first, for example `nanochat-run recipes/quickstart.yaml`"


def _exists(uri: str) -> bool:
    database = database_path(uri)
    return database is None or (database.is_file() and database.stat().st_size > 0)


def _free_port(first: int) -> int:
    """Return the first free port after `first`, or `first` itself."""
    ports = range(first, min(first + _PORTS_TO_TRY, LAST_PORT + 1))
    return next((port for port in ports if _is_free(port)), first)


def _is_free(port: int) -> bool:
    """Return whether a server may listen on the port, and none does on any address of this machine."""
    with closing(socket.socket()) as client:
        if client.connect_ex((_HOST, port)) == 0:
            return False
    with closing(socket.socket()) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((_HOST, port))
        except OSError:  # in use, or kept for the administrator
            return False
    return True
