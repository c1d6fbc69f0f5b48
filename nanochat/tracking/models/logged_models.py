"""Writes the models of a run to MLflow, with the metrics that were measured on them, and registers the last one.

Doing so twice, or after a crash, creates nothing twice: a model is found again by a key that is on disk before MLflow
knows it, and metrics, outputs and versions are read before they are written.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from nanochat.plan.quantities import show_bytes
from nanochat.storage.layout import MODEL_FOLDER
from nanochat.storage.locking import folder_lock
from nanochat.tracking.link import ModelLink, read_link
from nanochat.tracking.mlflow_store import Store
from nanochat.tracking.models.model_files import write_model_files
from nanochat.tracking.models.registry import register
from nanochat.tracking.run_view import KEY_TAG, Measurement, ModelView, RunView
from nanochat.tracking.writer import DATASET_DIGEST_CHARS, acceptable_tags

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

_MISSING = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")
_NO_SUCH_ADDRESS = 404


class NoModelsError(Exception):
    """The store is of a version that has no logged models."""


class ModelWriter:
    """Writes models to a store. `notices` says what happened to the registered models."""

    def __init__(self, store: Store) -> None:
        self._store, self._client = store, store.client
        self.notices: list[str] = []
        self.file_on_its_way: str | None = None
        """The file that is being uploaded, with its size. Another thread may read this."""

    def send(self, view: RunView, run_id: str) -> None:
        """Write the models of a run whose other parts are written.

        Raises:
            NoModelsError: the store has no logged models.
        """
        for model in view.models:
            with folder_lock(model.link.parent):  # several runs may share a stage
                self._send_model(model, run_id)
        for measurement in view.measurements:
            self._attach(measurement)
        if view.registration is not None:
            link = ModelLink.read(view.registration.model.link)
            assert link is not None, "the model was sent"
            source_run = self._source_run(view.registration.model, run_id)
            self.notices += register(self._store, view.registration, link, run_id=source_run)

    def _source_run(self, model: ModelView, run_id: str) -> str:
        """Return the run that trained the model, or `run_id` if the store does not have it."""
        run = read_link(model.run_link)
        return run.run_id if run is not None and run.uri == self._store.uri else run_id

    def _send_model(self, model: ModelView, run_id: str) -> None:
        source_run = self._source_run(model, run_id)
        link = ModelLink.read(model.link) or ModelLink(key=uuid.uuid4().hex).save(model.link)
        logged = self._find(link) or self._create(model, link.key, source_run)
        if logged.model_id != link.model_id:  # it is not known what of it was uploaded
            link = ModelLink(key=link.key, model_id=logged.model_id).save(model.link)
        for run_with_model in dict.fromkeys((source_run, run_id)):
            self._add_output(run_with_model, logged.model_id, model.step)
        self._send_files(model, link, logged, source_run)
        if str(logged.status) != "READY":
            self._client.finalize_logged_model(logged.model_id, "READY")

    def _add_output(self, run_id: str, model_id: str, step: int) -> None:
        """Name a model as an output of a run, unless it is one already: MLflow refuses to do so twice."""
        from mlflow.entities import LoggedModelOutput

        outputs = self._client.get_run(run_id).outputs
        if model_id not in {output.model_id for output in (outputs.model_outputs if outputs else ())}:
            self._client.log_outputs(run_id, [LoggedModelOutput(model_id, step)])

    def _find(self, link: ModelLink) -> LoggedModel | None:
        """Return the model of a link, or None if the experiment does not have it. Users may delete models."""
        from mlflow.exceptions import MlflowException

        with _noticing_old_stores():
            if link.model_id:
                try:
                    logged = self._client.get_logged_model(link.model_id)
                    if str(logged.experiment_id) == self._store.experiment_id:
                        return logged
                except MlflowException as error:
                    if error.error_code not in _MISSING:
                        raise
            models = self._client.search_logged_models(
                [self._store.experiment_id], f"tags.{KEY_TAG} = '{link.key}'", max_results=1
            )
        return models[0] if models else None

    def _create(self, model: ModelView, key: str, run_id: str) -> LoggedModel:
        with _noticing_old_stores():
            return self._client.create_logged_model(
                self._store.experiment_id,
                name=model.name,
                source_run_id=run_id,
                tags={**acceptable_tags(model.tags), KEY_TAG: key},
                params=model.params,
                model_type="chat" if model.is_chat else "base",
            )

    def _send_files(self, model: ModelView, link: ModelLink, logged: LoggedModel, run_id: str) -> None:
        """Write the description of the model, and its files if they are to be uploaded."""
        stamp = f"{model.folder} {sorted(model.files.items())}"
        if link.files.get("MLmodel") != stamp:
            with tempfile.TemporaryDirectory(prefix="nanochat-model-") as scratch:
                write_model_files(Path(scratch), model, model_id=logged.model_id, run_id=run_id)
                self._client.log_model_artifacts(logged.model_id, scratch)
            link = link.model_copy(update={"files": {**link.files, "MLmodel": stamp}}).save(model.link)
        for name, digest in model.files.items() if model.is_uploaded else ():
            if link.files.get(name) == digest:
                continue
            if not _link_file(model.folder / name, logged.artifact_location):
                self._upload(model.folder / name, logged.model_id)
            link = link.model_copy(update={"files": {**link.files, name: digest}}).save(model.link)

    def _upload(self, file: Path, model_id: str) -> None:
        self.file_on_its_way = f"{file.name} ({show_bytes(file.stat().st_size)})"
        try:
            self._client.log_model_artifact(model_id, str(file), MODEL_FOLDER)
        finally:
            self.file_on_its_way = None

    def _attach(self, measurement: Measurement) -> None:
        """Write the metrics that a run has to the model as well, with the times that they have there."""
        from mlflow.entities import LoggedModelInput, Metric

        run, model = read_link(measurement.run_link), ModelLink.read(measurement.model_link)
        if run is None or model is None or not model.model_id or run.uri != self._store.uri:
            return
        logged = self._client.get_logged_model(model.model_id)
        present = {metric.key for metric in logged.metrics or () if metric.run_id == run.run_id}
        metrics = []
        for name, dataset in measurement.metrics.items():
            history = self._client.get_metric_history(run.run_id, name) if name not in present else []
            if history:
                last = max(history, key=lambda metric: metric.step)
                about = {"model_id": model.model_id, "run_id": run.run_id}
                if dataset is not None:
                    about |= {"dataset_name": dataset.name, "dataset_digest": dataset.digest[:DATASET_DIGEST_CHARS]}
                metrics.append(Metric(name, last.value, last.timestamp, last.step, **about))
        if metrics:
            if logged.source_run_id != run.run_id:
                self._client.log_inputs(run.run_id, models=[LoggedModelInput(model.model_id)])
            self._client.log_batch(run.run_id, metrics=metrics)


@contextmanager
def _noticing_old_stores() -> Iterator[None]:
    """Raise NoModelsError if the store does not know the request at all."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except NotImplementedError as error:  # a plugin
        raise NoModelsError from error
    except MlflowException as error:
        is_unknown = error.get_http_status_code() == _NO_SUCH_ADDRESS  # type: ignore[no-untyped-call]
        if error.error_code == "ENDPOINT_NOT_FOUND" or (is_unknown and error.error_code not in _MISSING):
            raise NoModelsError from error
        raise


def _link_file(file: Path, location: str) -> bool:
    """Put a file into a local folder of MLflow as a hard link, and return whether that was possible."""
    parts = urlsplit(location)
    if parts.scheme not in ("", "file"):
        return False
    folder = Path(unquote(parts.path) if parts.scheme else location) / MODEL_FOLDER
    target = folder / file.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.hardlink_to(file)
    except OSError:  # another disk, or a file system without links
        return False
    return True
