"""Brings a run in MLflow up to date with its local files. Doing so twice, or after a crash, uploads nothing twice.

The link file beside each run names its MLflow run. The last uploaded step of each metric is read from the store itself.
So every point is uploaded exactly once, however often the uploading process was killed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from nanochat.storage.locking import folder_lock
from nanochat.tracking.link import Link, read_key, read_link, reserve_key
from nanochat.tracking.mlflow_store import Store, TrackingOutageError, probe, raise_outages, reason_of
from nanochat.tracking.models.logged_models import ModelWriter, NoModelsError
from nanochat.tracking.points import Point, Tail
from nanochat.tracking.run_view import HOST_TAG, KEY_TAG, MACHINE_TAG, PID_TAG, STARTED_TAG, RunView, Status
from nanochat.tracking.store_address import show_uri
from nanochat.tracking.view_digests import (
    NO_MODELS,
    TABLES,
    digest_of,
    file_stamps,
    is_complete,
    models_digest,
    shown_tags,
    table_name,
)
from nanochat.tracking.writer import RunGoneError, Writer, acceptable_tags, milliseconds

if TYPE_CHECKING:
    from mlflow.entities import Run

_FIRST_TAGS = (KEY_TAG, HOST_TAG, MACHINE_TAG, PID_TAG, STARTED_TAG, "mlflow.user", "mlflow.parentRunId")


class Sender:
    """Uploads run views to a store, and caches how far each metric is uploaded."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._client = store.client
        self._writer, self.models = Writer(store), ModelWriter(store)
        self._tails: dict[Path, Tail] = {}
        self._checked: set[str] = set()
        self._failures: list[str] = []
        self._names: dict[str, str] = {}

    @property
    def refusals(self) -> list[str]:
        """What the store refused, each item once, for the user."""
        refused = dict.fromkeys(self._writer.refusals)
        return [f"{self._names[run_id]}: {refusal}" for run_id, refusal in refused]

    def send(self, view: RunView) -> Link:
        """Upload what is new in a run and its stages, and return the run's link. Raises TrackingOutageError.

        What the store refuses is left out, see `refusals`. If a user deletes the run during the upload, it is uploaded
        again.
        """
        try:
            probe(self._store.uri)
            # Two commands that start at once both upload what earlier runs could not.
            with raise_outages(self._store.uri), folder_lock(view.link.parent):
                try:
                    link = self._send(view, parent=self._parent_of(view))
                except RunGoneError:
                    self._start_over()
                    link = self._send(view, parent=self._parent_of(view))
        except RunGoneError as error:
            self._start_over()
            raise TrackingOutageError(f"{show_uri(self._store.uri)}: {view.name} was deleted twice") from error
        except BaseException:
            self._read_again()
            raise
        if self._failures:
            failures, self._failures = self._failures, []
            raise TrackingOutageError("; ".join(failures))
        return link

    def _parent_of(self, view: RunView) -> str:
        """Return the MLflow run of the sweep that a run belongs to, created if there is none. Empty without a sweep."""
        if view.parent is None:
            return ""
        with folder_lock(view.parent.link.parent):  # cells of one sweep may run at the same time
            link = self._find(view.parent)
            if link is None:
                link = self._describe(view.parent, self._create(view.parent, ""), "")
        return link.run_id

    def _read_again(self) -> None:
        """Read the local files from their start, because it is unknown how much of the last request arrived."""
        self._tails.clear()
        self._failures.clear()

    def _start_over(self) -> None:
        """Look again which runs the store has."""
        self._read_again()
        self._checked.clear()

    def _send(self, view: RunView, *, parent: str = "") -> Link:
        link = self._find(view)
        if link is not None and is_complete(view, link, parent):
            children = [(stage, self._find(stage)) for stage in view.stages]
            if all(child is not None and is_complete(stage, child, link.run_id) for stage, child in children):
                return link
        link = self._describe(view, link or self._create(view, parent), parent)
        self._names[link.run_id] = view.name
        for stage in view.stages:
            self._send(stage, parent=link.run_id)
        if view.datasets and link.datasets_digest != (digest := digest_of([vars(x) for x in view.datasets])):
            self._writer.write_datasets(link.run_id, view.datasets)
            link = link.change(view.link, datasets_digest=digest)
        for stream in view.streams:
            self._writer.write_points(link.run_id, self._tails.setdefault(stream, Tail(stream)).read())
        first = [Point(0, name, value) for name, value in view.metrics.items()]
        self._writer.write_points(link.run_id, [*first, *view.points])
        link, has_files = self._send_files(view, link)
        link, has_models = self._send_models(view, link)
        if view.status == "RUNNING":
            return link
        self._writer.close(link.run_id, view.status, view.ended)
        return link.change(view.link, status=view.status, is_complete=has_files and has_models)

    def _find(self, view: RunView) -> Link | None:
        """Return the link to the view's MLflow run if the store has it, else None. Users may delete runs in the UI.

        The run may have been created just before a kill, or be in a database that was moved since. It is then not
        known how much of it was uploaded.
        """
        link, store = read_link(view.link), self._store
        if link is not None and link.run_id in self._checked:
            return link
        run = None if link is None else self._get_run(link)
        if run is None and (key := read_key(view.link)):
            found = self._client.search_runs([store.experiment_id], f"tags.{KEY_TAG} = '{key}'", max_results=1)
            run, link = (found[0], Link(key=key)) if found else (None, link)
        if run is None or link is None:
            return None
        self._checked.add(run.info.run_id)
        status = cast(Status, run.info.status if run.info.status in get_args(Status) else "RUNNING")
        if link.run_id and (link.uri, link.experiment, link.status) == (store.uri, store.experiment, status):
            return link
        return self._link(link.key, run, status).save(view.link)

    def _get_run(self, link: Link) -> Run | None:
        """Return the MLflow run of a link, or None if it does not exist, is deleted, or is in another experiment."""
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(link.run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        is_renamed = (link.uri, link.experiment) == (self._store.uri, self._store.experiment)
        is_here = run.info.experiment_id == self._store.experiment_id or is_renamed
        return run if is_here and run.info.lifecycle_stage == "active" else None

    def _create(self, view: RunView, parent: str) -> Link:
        """Create the view's MLflow run, with the tags that are needed to find it again and to close it if it is stale.

        The other tags follow later, since one that MLflow refuses must not keep the run from being created.
        """
        key = read_key(view.link) or reserve_key(view.link)
        tags = acceptable_tags({**shown_tags(view, parent), KEY_TAG: key})
        needed = {name: value for name, value in tags.items() if name in _FIRST_TAGS}
        began, number = milliseconds(view.started), self._store.experiment_id
        run = self._client.create_run(number, run_name=view.name, start_time=began, tags=needed)
        self._checked.add(run.info.run_id)
        self._writer.expect_no_points(run.info.run_id)
        return self._link(key, run, "RUNNING").save(view.link)

    def _link(self, key: str, run: Run, status: Status) -> Link:
        uri, experiment, info = self._store.uri, self._store.experiment, run.info
        return Link(
            key=key, uri=uri, experiment=experiment, experiment_id=info.experiment_id, run_id=info.run_id, status=status
        )

    def _describe(self, view: RunView, link: Link, parent: str) -> Link:
        """Upload parameters, tags and description if they changed, and reopen the run if it was closed."""
        if link.status != "RUNNING":
            self._writer.reopen(link.run_id)
            link = link.change(view.link, status="RUNNING", is_complete=False)
        if not link.has_params and view.params:
            self._writer.write_params(link.run_id, view.params)
            link = link.change(view.link, has_params=True)
        tags = shown_tags(view, parent)
        if (digest := digest_of(tags)) != link.text_digest:
            self._writer.write_tags(link.run_id, tags)
            link = link.change(view.link, text_digest=digest, parent=parent)
        return link

    def _send_files(self, view: RunView, link: Link) -> tuple[Link, bool]:
        """Upload files and tables that are new or changed. Return the link, and whether the store has all of them.

        If one cannot be uploaded, the rest of the run still is: files may be kept on another server than metrics.
        """
        for name, stamp in file_stamps(view).items():
            if link.artifacts.get(name) == stamp:
                continue
            try:
                self._write_file(view, link.run_id, name)
            except RunGoneError:
                raise
            except Exception as error:  # noqa: BLE001 -- places for files are plugins, with errors of their own
                self._failures.append(f"{view.name}: {name}: {reason_of(error, self._store.uri)}")
                return link, False
            link = link.change(view.link, artifacts={**link.artifacts, name: stamp})
        if tables := [name for name in link.artifacts if name.startswith(TABLES)]:
            shown = [{"path": name, "type": "table"} for name in tables]
            self._writer.write_tags(link.run_id, {"mlflow.loggedArtifacts": json.dumps(shown)})
        return link, True

    def _send_models(self, view: RunView, link: Link) -> tuple[Link, bool]:
        """Upload models, their metrics and the registration if they are new. Return the link, and whether that worked.

        A store without models is reported, and the run is complete without them.
        """
        digest = models_digest(view)
        if link.models_digest == digest:
            return link, True
        try:
            self.models.send(view, link.run_id)
        except NoModelsError:
            reason = "this MLflow server keeps none, which takes version 3"
            self._writer.refusals.append((link.run_id, f"models: {reason}"))
            digest = f"{NO_MODELS}{digest}"
        except Exception as error:  # noqa: BLE001 -- places for files are plugins, with errors of their own
            self._checked.clear()  # a user may have deleted a run that trained a model
            self._failures.append(f"{view.name}: models: {reason_of(error, self._store.uri)}")
            return link, False
        return link.change(view.link, models_digest=digest), True

    def _write_file(self, view: RunView, run_id: str, name: str) -> None:
        for table in view.tables:
            if name == table_name(table):
                self._writer.write_table(run_id, name, table)
        for artifact in view.artifacts:
            if name == artifact.name:
                self._writer.write_file(run_id, artifact)
