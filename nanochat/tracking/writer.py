"""Writes runs to MLflow. What the store refuses is left out and reported. Every point is written once.

A refusal is the answer to one request, such as a tag that is too long for this server. The same request would be
refused again, so it is not repeated. Every other error may be temporary, and is raised.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from nanochat.recipe.check.tracking_values import MLFLOW_PREFIX, TAG_CHARS, acceptable_key
from nanochat.terminal.output import printable
from nanochat.tracking.mlflow_store import Store, StoreRefusalError, raise_refusals
from nanochat.tracking.points import Point
from nanochat.tracking.run_view import OWN_MLFLOW_TAGS, Artifact, Dataset, Status

_BATCH_POINTS = 1000
_PARAM_CHARS = 6000
DATASET_DIGEST_CHARS = 32
_Item = TypeVar("_Item")


class RunGoneError(Exception):
    """A user deleted the run in MLflow while it was written to."""


class Writer:
    """Writes the parts of runs to a store, and collects what the store refused."""

    def __init__(self, store: Store) -> None:
        self._client, self._uri = store.client, store.uri
        self._last_steps: dict[tuple[str, str], int] = {}
        self._known_empty: set[str] = set()
        self._times: dict[tuple[str, str, int], int] = {}
        self.refusals: list[tuple[str, str]] = []
        """Run ids, each with a message for the user: what was left out, and why."""

    def expect_no_points(self, run_id: str) -> None:
        """Remember that a run was just created, so that its metrics need not be read."""
        self._known_empty.add(run_id)

    def reopen(self, run_id: str) -> None:
        """Mark a run as running."""
        with self._noticing_deletion(run_id):
            self._client.update_run(run_id, status="RUNNING")

    def close(self, run_id: str, status: Status, ended: float | None) -> None:
        """Mark a run as ended. `ended` is in seconds since the epoch, or None for now."""
        with self._noticing_deletion(run_id):
            self._client.set_terminated(run_id, status, end_time=milliseconds(ended))

    def write_params(self, run_id: str, params: dict[str, str]) -> None:
        """Write the parameters that the run does not have yet, since MLflow refuses to change one."""
        from mlflow.entities import Param

        present = self._client.get_run(run_id).data.params
        wanted = {acceptable_key(name): _shown(value, _PARAM_CHARS) for name, value in params.items()}
        new = [Param(name, value) for name, value in wanted.items() if name not in present]
        self._write_all(
            run_id, new, lambda items: self._client.log_batch(run_id, params=items), lambda p: f"parameter `{p.key}`"
        )

    def write_tags(self, run_id: str, tags: dict[str, str]) -> None:
        """Write tags, replacing those of the same name."""
        from mlflow.entities import RunTag

        items = []
        for name, value in acceptable_tags(tags).items():
            if name.startswith(MLFLOW_PREFIX) and name not in OWN_MLFLOW_TAGS:
                self.refusals.append((run_id, f"tag `{name}`: it is one of MLflow's own tags"))
            else:
                items.append(RunTag(name, value))
        self._write_all(
            run_id, items, lambda items: self._client.log_batch(run_id, tags=items), lambda t: f"tag `{t.key}`"
        )

    def write_datasets(self, run_id: str, datasets: tuple[Dataset, ...]) -> None:
        """Write the data sets that the run read."""
        from mlflow.entities import Dataset as MlflowDataset
        from mlflow.entities import DatasetInput, InputTag

        inputs = []
        for d in datasets:
            dataset = MlflowDataset(d.name, d.digest[:DATASET_DIGEST_CHARS], "nanochat", json.dumps({"uri": d.source}))
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", d.context)]))
        self._write_all(
            run_id,
            inputs,
            lambda items: self._client.log_inputs(run_id, items),
            lambda i: f"data set `{i.dataset.name}`",
        )

    def write_points(self, run_id: str, points: Sequence[Point]) -> None:
        """Write the points after the last step that the store has of each metric."""
        from mlflow.entities import Metric

        for name in dict.fromkeys(point.name for point in points):
            self._last_step(run_id, acceptable_key(name))  # before any point counts as sent, since this may fail
        now, new = int(time.time() * 1000), []
        for point in points:
            key = (run_id, acceptable_key(point.name))
            if point.step > self._last_step(*key):
                self._last_steps[key] = point.step
                time_ms = milliseconds(point.time) or self._times.setdefault((*key, point.step), now)
                new.append(Metric(key[1], point.value, time_ms, point.step))
        try:
            for start in range(0, len(new), _BATCH_POINTS):
                self._write_all(
                    run_id,
                    new[start : start + _BATCH_POINTS],
                    lambda items: self._client.log_batch(run_id, metrics=items),
                    lambda metric: f"metric `{metric.key}` at step {metric.step}",
                )
        except BaseException:
            # It is unknown how much arrived, so the store is asked again. The points keep their times: MLflow ignores
            # one that it has with the same time and value, even if it was still on its way.
            self._known_empty.discard(run_id)
            for metric in new:
                self._last_steps.pop((run_id, metric.key), None)
            raise
        for metric in new:
            self._times.pop((run_id, metric.key, metric.step), None)

    def _last_step(self, run_id: str, name: str) -> int:
        key = (run_id, name)
        if key not in self._last_steps:
            history = [] if run_id in self._known_empty else self._client.get_metric_history(run_id, name)
            self._last_steps[key] = max((metric.step for metric in history), default=-1)
        return self._last_steps[key]

    def write_file(self, run_id: str, artifact: Artifact) -> None:
        """Write a local file."""
        self._write_all(
            run_id,
            [artifact],
            lambda _: self._client.log_artifact(run_id, str(artifact.path), artifact.folder or None),
            lambda _: f"file `{artifact.name}`",
        )

    def write_table(self, run_id: str, name: str, rows: Path) -> None:
        """Write a JSON Lines file as the artifact `name`, in the format of `log_table`.

        MLflow's `log_table` is not used, because it appends to a table that is there already.
        """
        self._write_all(
            run_id, [rows], lambda _: self._client.log_dict(run_id, _as_table(rows), name), lambda _: f"table `{name}`"
        )

    def _write_all(
        self,
        run_id: str,
        items: Sequence[_Item],
        write: Callable[[Sequence[_Item]], object],
        name: Callable[[_Item], str],
    ) -> None:
        """Write items in one request. If the store refuses it, write the halves, and name a single refused item."""
        if not items:
            return
        try:
            with self._noticing_deletion(run_id):
                write(items)
        except StoreRefusalError as error:
            if len(items) == 1:
                self.refusals.append((run_id, f"{name(items[0])}: {error}"))
                return
            for half in (items[: len(items) // 2], items[len(items) // 2 :]):
                self._write_all(run_id, half, write, name)

    @contextmanager
    def _noticing_deletion(self, run_id: str) -> Iterator[None]:
        """Raise RunGoneError if the store refuses a request because the run is deleted or unknown to it."""
        from mlflow.exceptions import MlflowException

        try:
            with raise_refusals(self._uri):
                yield
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise RunGoneError from error
            raise
        except StoreRefusalError as error:
            if self._client.get_run(run_id).info.lifecycle_stage == "deleted":
                raise RunGoneError from error
            raise


def milliseconds(seconds: float | None) -> int | None:
    """Return a time in milliseconds, MLflow's unit."""
    return None if seconds is None else int(1000 * seconds)


def acceptable_tags(tags: dict[str, str]) -> dict[str, str]:
    """Return tags with names and values that MLflow accepts."""
    return {acceptable_key(name): _shown(value, TAG_CHARS) for name, value in tags.items()}


def _shown(text: str, limit: int | None = None) -> str:
    """Return a text with visible control characters, cut to a number of characters, with a note if it is cut."""
    text = printable(text.encode(errors="backslashreplace").decode())
    if limit is None or len(text) <= limit:
        return text
    note = f" … [{len(text):,} characters; MLflow shows the first]"
    return text[: limit - len(note)] + note


def _as_table(path: Path) -> dict[str, list[object]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return {"columns": [*columns], "data": [[_cell(row.get(c)) for c in columns] for row in rows]}


def _cell(value: object) -> object:
    if isinstance(value, (int, float, bool)) or value is None:
        return value
    return _shown(value if isinstance(value, str) else json.dumps(value))
