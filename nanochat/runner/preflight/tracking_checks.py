"""Checks that MLflow can keep a run: the address, the database file, the name of the experiment, and the tags.

A server that is down is no problem here, because the run is uploaded later.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import urlsplit

from nanochat.recipe.check.tracking_values import DATABASE_FILE, EXPERIMENT_CHARS, find_wrong_address
from nanochat.recipe.schema.execution_sections import Tracking
from nanochat.runner.store.run_state import RunTracking
from nanochat.tracking.run_view import CACHED_TAG_PREFIX, OWN_TAGS
from nanochat.tracking.store_address import database_path

_DRIVERS = {
    "postgresql": ("psycopg2", "psycopg2-binary"),
    "postgresql+psycopg2": ("psycopg2", "psycopg2-binary"),
    "postgresql+psycopg": ("psycopg", "psycopg[binary]"),
    "mysql": ("MySQLdb", "mysqlclient"),
    "mysql+pymysql": ("pymysql", "pymysql"),
    "mssql": ("pyodbc", "pyodbc"),
    "mssql+pymssql": ("pymssql", "pymssql"),
}
"""The module that connects to a database, and the package that installs it."""
_SQLITE_HEADER = b"SQLite format 3\0"
_OTHERWISE = "set another `tracking.uri`, or turn MLflow off with `tracking: {kind: none}`"


def find_tracking_problems(section: Tracking, tracking: RunTracking) -> Iterator[str]:
    """Yield a message for each reason why the run cannot be logged with the section `tracking` of its recipe."""
    if tracking.kind == "none" or tracking.uri is None:
        return
    yield from _check_address(tracking.uri, section)
    if len(tracking.experiment) > EXPERIMENT_CHARS:
        yield (
            f"tracking: MLFLOW_EXPERIMENT_NAME has {len(tracking.experiment):,} characters; "
            f"MLflow accepts {EXPERIMENT_CHARS}"
        )
    for name in tracking.tags:
        if name in OWN_TAGS or name.startswith(CACHED_TAG_PREFIX):
            yield f"tracking: nanochat itself sets the tag `{name}`; choose another name in `tracking.tags`"


def _check_address(uri: str, section: Tracking) -> Iterator[str]:
    given = "tracking.uri" if section.uri else "MLFLOW_TRACKING_URI"
    plugins = {entry.name for entry in entry_points(group="mlflow.tracking_store")}
    scheme = urlsplit(uri).scheme if "://" in uri else ""
    if (wrong := find_wrong_address(uri, plugins=plugins)) is not None:
        yield f"tracking: {given} is `{uri}`: {wrong}"
    elif (path := database_path(uri)) is not None:
        yield from _check_database(path, uri)
    elif scheme in _DRIVERS and importlib.util.find_spec(_DRIVERS[scheme][0]) is None:
        module, package = _DRIVERS[scheme]
        yield f"tracking: {uri} needs the Python module `{module}`; install it with `pip install '{package}'`"


def _check_database(path: Path, uri: str) -> Iterator[str]:
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    if path.is_dir():
        yield f"tracking: {path} is a folder; write `{uri.rstrip('/')}/{DATABASE_FILE}` for a database in it"
    elif existing != path and not existing.is_dir():
        yield f"tracking: {uri} cannot be created, because {existing} is a file; {_OTHERWISE}"
    elif path.exists() and not _is_sqlite(path):
        yield f"tracking: {path} is not an SQLite database; move it away, or {_OTHERWISE}"
    else:
        # SQLite writes a journal beside the file, so the folder must be writable too.
        targets = [path, path.parent] if existing == path else [existing]
        blocked = next((target for target in targets if not os.access(target, os.W_OK)), None)
        if blocked is not None:
            yield f"tracking: {uri} cannot be written: no permission for {blocked}; {_OTHERWISE}"


def _is_sqlite(path: Path) -> bool:
    """Return whether a file is a database or empty. One that cannot be read is reported as not writable."""
    try:
        with path.open("rb") as file:
            return file.read(len(_SQLITE_HEADER)) in (_SQLITE_HEADER, b"")
    except PermissionError:
        return True
