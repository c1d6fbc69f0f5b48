"""Look into an MLflow database file without MLflow, whose import takes seconds."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

LOCK_SECONDS = 3.0
"""How long to wait for another process that is writing to the database."""


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
