"""What of a run's view was uploaded already: the size and time of files, and digests of everything else."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from nanochat.tracking.link import Link
from nanochat.tracking.run_view import RunView

TABLES = "tables/"
"""The artifact folder of tables."""
NO_MODELS = "no models: "
"""Before the digest of models that a store was too old to keep."""


def is_complete(view: RunView, link: Link, parent: str) -> bool:
    """Return whether an ended run is uploaded completely. Artifacts may be written after the run ended."""
    has_ended = link.is_complete and link.status == view.status and link.parent == parent
    has_models = link.models_digest.removeprefix(NO_MODELS) == models_digest(view)
    return has_ended and has_models and file_stamps(view).items() <= link.artifacts.items()


def models_digest(view: RunView) -> str:
    """Return a digest of what a run shows about models, or an empty text if there is nothing."""
    shown = [repr((model.name, model.folder, sorted(model.files.items()), model.is_uploaded)) for model in view.models]
    shown += [repr((str(x.run_link), str(x.model_link), sorted(x.metrics))) for x in view.measurements]
    if view.registration is not None:
        shown.append(repr((view.registration.name, view.registration.tags, view.registration.expectations)))
    return digest_of(shown) if shown else ""


def file_stamps(view: RunView) -> dict[str, str]:
    """Return the size and the time of each file and table that exists, by its name in MLflow."""
    paths = {artifact.name: artifact.path for artifact in view.artifacts}
    paths |= {table_name(table): table for table in view.tables}
    stamps = {}
    for name, path in paths.items():
        with suppress(FileNotFoundError):
            stat = path.stat()
            stamps[name] = f"{stat.st_size}:{stat.st_mtime_ns}"
    return stamps


def digest_of(content: object) -> str:
    """Return the sha256 of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def table_name(table: Path) -> str:
    """Return the name of a table in MLflow."""
    return f"{TABLES}{table.stem}.json"


def shown_tags(view: RunView, parent: str) -> dict[str, str]:
    """Return all tags of a run below the run `parent`, with its description, which is a tag as well."""
    own = {"mlflow.parentRunId": parent} if parent else {}
    return {**view.tags, **own, "mlflow.note.content": view.description}
