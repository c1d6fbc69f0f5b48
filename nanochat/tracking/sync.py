"""Bring a run in MLflow up to date with its local files. Doing so twice, or after a crash, uploads nothing twice.

The link file beside each run names its MLflow run. The last uploaded step of each metric is read from the store itself,
so that every point is uploaded exactly once, however often the uploading process was killed.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path

from nanochat.storage.files import write_text
from nanochat.tracking.link import Link, read_link
from nanochat.tracking.mlflow_store import Store, probe, raise_outages
from nanochat.tracking.points import Point, Tail
from nanochat.tracking.run_view import Artifact, Dataset, RunView

_BATCH = 1000
_PARAM_CHARS, _TAG_CHARS = 6000, 8000
_BAD_NAME = re.compile(r"[^\w\-. :/]")


class Sender:
    """Uploads run views to a store, and caches how far each metric is uploaded."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._client = store.client
        self._tails: dict[Path, Tail] = {}
        self._last_steps: dict[tuple[str, str], int] = {}
        self._known_empty: set[str] = set()
        self._checked: set[str] = set()

    def send(self, view: RunView) -> Link:
        """Upload what is new in a run and its stages, and return the run's link. Raises TrackingOutageError."""
        try:
            probe(self._store.uri)
            with raise_outages(self._store.uri):
                return self._send(view)
        except BaseException:
            # It is unknown how much of the last request arrived, so the store must be asked again.
            self._tails.clear()
            self._last_steps.clear()
            self._known_empty.clear()
            raise

    def _send(self, view: RunView, *, parent: str | None = None) -> Link:
        tags = view.tags if parent is None else {**view.tags, "mlflow.parentRunId": parent}
        link = self._open(view, tags)
        if all(_is_sent(part) for part in (view, *view.stages)):
            return link
        link = self._describe(view, link, tags)
        for stage in view.stages:
            self._send(stage, parent=link.run_id)
        if view.datasets and not link.has_datasets:
            self._send_datasets(link.run_id, view.datasets)
            link = _update(view.link, link, has_datasets=True)
        for stream in view.streams:
            self._send_points(link.run_id, self._tails.setdefault(stream, Tail(stream)).read())
        self._send_points(link.run_id, [Point(0, name, value) for name, value in view.metrics.items()])
        link = self._send_artifacts(view.link, link, view.artifacts)
        link = self._send_tables(view.link, link, view.tables)
        if view.status == "RUNNING":
            return link
        self._client.set_terminated(link.run_id, view.status, end_time=_milliseconds(view.ended))
        return _update(view.link, link, status=view.status, is_complete=True)

    def _open(self, view: RunView, tags: dict[str, str]) -> Link:
        """Return the link to the view's MLflow run, which is created if there is none yet."""
        link = read_link(view.link)
        if link is not None and self._exists(link):
            return link
        run = self._client.create_run(
            self._store.experiment_id,
            run_name=view.name,
            start_time=_milliseconds(view.started),
            tags={_name(key): value[:_TAG_CHARS] for key, value in tags.items()},
        )
        self._checked.add(run.info.run_id)
        self._known_empty.add(run.info.run_id)
        store = self._store
        link = Link(
            uri=store.uri, experiment=store.experiment, experiment_id=store.experiment_id, run_id=run.info.run_id
        )
        return _update(view.link, link)

    def _exists(self, link: Link) -> bool:
        """Return whether the link's run still exists in this store. Users may delete runs in the UI."""
        from mlflow.exceptions import MlflowException

        if (link.uri, link.experiment) != (self._store.uri, self._store.experiment):
            return False
        if link.run_id in self._checked:
            return True
        try:
            run = self._client.get_run(link.run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        self._checked.add(link.run_id)
        return bool(run.info.lifecycle_stage == "active")

    def _describe(self, view: RunView, link: Link, tags: dict[str, str]) -> Link:
        """Upload parameters, tags and description if they changed, and reopen the run if it was closed."""
        from mlflow.entities import Param, RunTag

        if link.status != "RUNNING":
            self._client.update_run(link.run_id, status="RUNNING")
            link = _update(view.link, link, status="RUNNING", is_complete=False)
        if not link.has_params and view.params:
            present = self._client.get_run(link.run_id).data.params
            new = [Param(_name(k), v[:_PARAM_CHARS]) for k, v in view.params.items() if _name(k) not in present]
            self._client.log_batch(link.run_id, params=new)
            link = _update(view.link, link, has_params=True)
        texts = {**tags, "mlflow.note.content": view.description}
        digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
        if digest != link.text_digest:
            self._client.log_batch(link.run_id, tags=[RunTag(_name(k), v[:_TAG_CHARS]) for k, v in texts.items()])
            link = _update(view.link, link, text_digest=digest)
        return link

    def _send_datasets(self, run_id: str, datasets: tuple[Dataset, ...]) -> None:
        from mlflow.entities import Dataset as MlflowDataset
        from mlflow.entities import DatasetInput, InputTag

        inputs = []
        for d in datasets:
            dataset = MlflowDataset(d.name, d.digest[:32], "nanochat", json.dumps({"uri": d.source}))
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", d.context)]))
        self._client.log_inputs(run_id, inputs)

    def _send_points(self, run_id: str, points: list[Point]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        new: list[Metric] = []
        for point in points:
            key = (run_id, _name(point.name))
            if point.step > self._last_step(*key):
                self._last_steps[key] = point.step
                new.append(Metric(key[1], point.value, now, point.step))
        for start in range(0, len(new), _BATCH):
            self._client.log_batch(run_id, metrics=new[start : start + _BATCH])

    def _last_step(self, run_id: str, name: str) -> int:
        known = self._last_steps.get((run_id, name))
        if known is not None:
            return known
        history = [] if run_id in self._known_empty else self._client.get_metric_history(run_id, name)
        return max((metric.step for metric in history), default=-1)

    def _send_artifacts(self, path: Path, link: Link, artifacts: tuple[Artifact, ...]) -> Link:
        for artifact in artifacts:
            stamp = _stamp(artifact.path)
            if stamp and link.artifacts.get(artifact.name) != stamp:
                self._client.log_artifact(link.run_id, str(artifact.path), artifact.folder or None)
                link = _update(path, link, artifacts={**link.artifacts, artifact.name: stamp})
        return link

    def _send_tables(self, path: Path, link: Link, tables: tuple[Path, ...]) -> Link:
        """Upload JSON Lines files in the format of `log_table`, which would append to an existing table."""
        for table in tables:
            name, stamp = f"tables/{table.stem}.json", _stamp(table)
            if not stamp or link.artifacts.get(name) == stamp:
                continue
            self._client.log_dict(link.run_id, _as_table(table), name)
            link = _update(path, link, artifacts={**link.artifacts, name: stamp})
            shown = [{"path": sent, "type": "table"} for sent in link.artifacts if sent.startswith("tables/")]
            self._client.set_tag(link.run_id, "mlflow.loggedArtifacts", json.dumps(shown))
        return link


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(1000 * seconds)


def _is_sent(view: RunView) -> bool:
    """Return whether an ended run is uploaded completely. Artifacts may be written after the run ended."""
    link = read_link(view.link)
    if link is None or not link.is_complete or link.status != view.status:
        return False
    stamps = {artifact.name: _stamp(artifact.path) for artifact in view.artifacts}
    return all(not stamp or link.artifacts.get(name) == stamp for name, stamp in stamps.items())


def _update(path: Path, link: Link, **changes: object) -> Link:
    updated = link.model_copy(update=changes)
    write_text(path, updated.model_dump_json(indent=1))
    return updated


def _name(name: str) -> str:
    return _BAD_NAME.sub("_", name)


def _stamp(path: Path) -> str | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return f"{stat.st_size}:{stat.st_mtime_ns}"


def _as_table(path: Path) -> dict[str, list[object]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return {"columns": [*columns], "data": [[_cell(row.get(c)) for c in columns] for row in rows]}


def _cell(value: object) -> object:
    return value if isinstance(value, (str, int, float, bool)) or value is None else json.dumps(value)
