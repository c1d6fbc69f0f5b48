"""`tracking.json`, the file beside a run or stage that stores its MLflow run and what has been uploaded already."""

from __future__ import annotations

import uuid
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from nanochat.storage.files import write_text
from nanochat.tracking.run_view import Status


class Link(BaseModel):
    """The MLflow run of a folder. `artifacts` maps the name of each uploaded file to its size and modification time."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    key: str = ""
    """A tag of the MLflow run by which it is found again if its id is lost."""
    uri: str = ""
    experiment: str = ""
    experiment_id: str = ""
    run_id: str = ""
    """Empty while the MLflow run is being created."""
    parent: str = ""
    """The MLflow run that this one is shown under."""
    status: Status = "RUNNING"
    text_digest: str = ""
    has_params: bool = False
    has_datasets: bool = False
    artifacts: dict[str, str] = {}
    is_complete: bool = False

    def save(self, path: Path) -> Link:
        """Write the link and return it."""
        write_text(path, self.model_dump_json(indent=1))
        return self

    def change(self, path: Path, **changes: object) -> Link:
        """Write the link with some fields changed, and return it."""
        return self.model_copy(update=changes).save(path)


def read_link(path: Path) -> Link | None:
    """Return the link, or None if nothing has been uploaded yet."""
    link = _read(path)
    return link if link is not None and link.run_id else None


def read_key(path: Path) -> str:
    """Return the key of the folder's MLflow run, or an empty text if none was ever created."""
    link = _read(path)
    return "" if link is None else link.key


def reserve_key(path: Path) -> str:
    """Return a new key, which is on disk before the run is created, so that a kill does not lose it."""
    return Link(key=uuid.uuid4().hex).save(path).key


def _read(path: Path) -> Link | None:
    try:
        return Link.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
