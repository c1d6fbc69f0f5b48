"""Reads and corrects an MLflow database file without MLflow, whose import takes seconds."""

from __future__ import annotations

import atexit
import hashlib
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Collection
from contextlib import closing
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from nanochat.recipe.check.tracking_values import SQLITE

LOCK_SECONDS = 3.0
"""How long to wait for another process that is writing to the database."""
ARTIFACTS_FOLDER = "mlartifacts"
"""The folder beside the database in which the files of runs are kept."""
_DEFAULT_FOLDER = "mlruns"
"""Where MLflow keeps files by default: in the working directory, by the number of the experiment."""
_PROXIED = "mlflow-artifacts:"
"""Starts the address of files that a server passes on. They cannot be reached without the server."""
_FOLDER_NAME_BYTES = 200
_AMBIGUOUS = re.compile("[%?]")


def holds_runs(database: Path, run_ids: Collection[str]) -> bool:
    """Return whether the database has all of these MLflow runs, none of them deleted. False if it cannot be read."""
    marks = ",".join("?" * len(run_ids))
    query = f"select count(*) from runs where lifecycle_stage = 'active' and run_uuid in ({marks})"
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=LOCK_SECONDS)) as connection:
            (count,) = connection.execute(query, tuple(run_ids)).fetchone()
    except sqlite3.Error:
        return False
    return bool(count == len(set(run_ids)))


def artifact_folder(database: Path, experiment: str) -> Path:
    """Return the folder for the files of an experiment, which is beside the database in any working directory."""
    name = re.sub(r"[^\w.-]", "_", experiment)
    if name in (".", "..") or len(name.encode()) > _FOLDER_NAME_BYTES:
        name = f"experiment-{hashlib.sha256(experiment.encode()).hexdigest()[:16]}"
    return database.parent / ARTIFACTS_FOLDER / name


def find_moved_artifacts(database: Path) -> None:
    """Correct where the database says that files are, after it was moved or copied together with them.

    MLflow stores absolute paths, so that new files would be written to the old place, and old files not be found. Files
    that are still where the database says, and experiments with a place that a user chose, are left alone.
    Raises sqlite3.Error.
    """
    with closing(sqlite3.connect(database, timeout=LOCK_SECONDS)) as connection, connection:
        if not connection.execute("select 1 from sqlite_master where name = 'experiments'").fetchone():
            return
        experiments = connection.execute("select experiment_id, name, artifact_location from experiments").fetchall()
        for number, name, location in experiments:
            home = _find_home(database, str(number), name, location or "")
            if home is None:
                continue
            if home.as_uri() != location:
                change = "update experiments set artifact_location = ? where experiment_id = ?"
                connection.execute(change, (home.as_uri(), number))
            away = "select run_uuid from runs where experiment_id = ? and substr(artifact_uri, 1, ?) != ?"
            prefix = f"{home.as_uri()}/"
            for (run_id,) in connection.execute(away, (number, len(prefix), prefix)).fetchall():
                if (home / run_id).is_dir():
                    place = f"{prefix}{run_id}/artifacts"
                    connection.execute("update runs set artifact_uri = ? where run_uuid = ?", (place, run_id))
            _find_moved_models(connection, number, home)


def set_version_source(database: Path, name: str, version: int, source: str) -> None:
    """Name the source of a registered version, to which MLflow's page links. Where its files are is kept elsewhere."""
    with closing(sqlite3.connect(database, timeout=LOCK_SECONDS)) as connection, connection:
        change = "update model_versions set source = ? where name = ? and version = ?"
        connection.execute(change, (source, name, version))


def _find_moved_models(connection: sqlite3.Connection, experiment: int, home: Path) -> None:
    """Correct where the models of an experiment are, and the versions of registered models that were made of them."""
    if not connection.execute("select 1 from sqlite_master where name = 'logged_models'").fetchone():
        return  # before version 3
    query = "select model_id, artifact_location from logged_models where experiment_id = ?"
    for model_id, old in connection.execute(query, (experiment,)).fetchall():
        folder = home / "models" / model_id / "artifacts"
        if folder.as_uri() != old and folder.is_dir():
            change = "update {} set {} = ? where {} = ?"
            connection.execute(
                change.format("logged_models", "artifact_location", "model_id"), (folder.as_uri(), model_id)
            )
            connection.execute(
                change.format("model_versions", "storage_location", "storage_location"), (folder.as_uri(), old)
            )


def _find_home(database: Path, number: str, name: str, location: str) -> Path | None:
    """Return the folder in which an experiment's files belong now, or None if a user or another program chose it."""
    beside = database.parent / ARTIFACTS_FOLDER
    if location.startswith(_PROXIED):  # a server wrote the files; without it they can only be read and written directly
        return beside / number if (beside / number).is_dir() else None
    if urlsplit(location).scheme not in ("", "file"):
        return None
    stored = Path(unquote(urlsplit(location).path) if location.startswith("file:") else location)
    ours = stored.parent.name == ARTIFACTS_FOLDER and stored.name in (artifact_folder(database, name).name, number)
    if not ours and (stored.parent.name, stored.name) != (_DEFAULT_FOLDER, number):
        return None
    home = database.parent / stored.parent.name / stored.name
    was_copied = (stored.parent.parent / database.name).exists()
    if home == stored or (ours and (was_copied or not stored.is_dir())):
        return home
    return home if home.is_dir() and not stored.is_dir() else None


def url_for_mlflow(database: Path) -> str:
    """Return the address by which MLflow opens a database file, through a link if its path has other characters.

    Versions of SQLAlchemy differ in whether `%20` is a space, and `?` begins parameters.
    """
    if not _AMBIGUOUS.search(str(database)):
        return f"{SQLITE}{database}"
    return f"{SQLITE}{_link_to(database)}"


@cache
def _link_to(path: Path) -> Path:
    """Return a link to a file, in a folder of its own that is deleted when the program ends."""
    folder = Path(tempfile.mkdtemp(prefix="nanochat-mlflow-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    link = folder / "link"
    link.symlink_to(path)
    return link
