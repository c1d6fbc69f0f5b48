"""`tracking.json`, the file beside a run or stage that stores its MLflow run and what has been uploaded already."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from nanochat.tracking.run_view import Status


class Link(BaseModel):
    """The MLflow run of a folder. `artifacts` maps the name of each uploaded file to its size and modification time."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    uri: str
    experiment: str
    experiment_id: str
    run_id: str
    status: Status = "RUNNING"
    text_digest: str = ""
    has_params: bool = False
    has_datasets: bool = False
    artifacts: dict[str, str] = {}
    is_complete: bool = False


def read_link(path: Path) -> Link | None:
    """Return the link, or None if nothing has been uploaded yet."""
    try:
        return Link.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
