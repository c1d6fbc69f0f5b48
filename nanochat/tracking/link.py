"""The files beside a run or stage that store its MLflow run or model, and what has been uploaded already."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from nanochat.storage.files import read_file, write_text
from nanochat.tracking.run_view import Status


class _Stored(BaseModel):
    """Base class of the two links, which are stored as JSON."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    def save(self, path: Path) -> Self:
        """Write the link and return it."""
        write_text(path, self.model_dump_json(indent=1))
        return self

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Return the link that was saved, or None if there is none or it cannot be read."""
        try:
            return cls.model_validate_json(read_file(path))
        except (FileNotFoundError, ValidationError):
            return None


class Link(_Stored):
    """The MLflow run of a folder. `artifacts` maps the name of each uploaded file to its size and modification time."""

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
    datasets_digest: str = ""
    """A digest of the data sets that were uploaded. Those of a run of several stages grow while it runs."""
    artifacts: dict[str, str] = {}
    models_digest: str = ""
    """A digest of the models, their metrics and the registration that were uploaded."""
    is_complete: bool = False

    def change(self, path: Path, **changes: object) -> Link:
        """Write the link with some fields changed, and return it."""
        return self.model_copy(update=changes).save(path)


class ModelLink(_Stored):
    """The logged model of a stage. `files` maps the name of each uploaded file to a digest of its content."""

    key: str
    """A tag of the model by which it is found again if its id is lost."""
    model_id: str = ""
    """Empty while the model is being created."""
    files: dict[str, str] = {}


def read_link(path: Path) -> Link | None:
    """Return the link, or None if nothing has been uploaded yet."""
    link = Link.read(path)
    return link if link is not None and link.run_id else None


def read_key(path: Path) -> str:
    """Return the key of the folder's MLflow run, or an empty text if none was ever created."""
    return (Link.read(path) or Link()).key


def reserve_key(path: Path) -> str:
    """Return a new key, which is on disk before the run is created, so that a kill does not lose it."""
    return Link(key=uuid.uuid4().hex).save(path).key
