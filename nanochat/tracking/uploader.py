"""Uploads a run to MLflow in a background thread, so that neither importing MLflow nor an outage delays the run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from nanochat.tracking.mlflow_store import Store, TrackingOutageError, open_store, probe, raise_outages
from nanochat.tracking.run_view import MACHINE_TAG, PID_TAG, STARTED_TAG, RunView
from nanochat.tracking.store_address import show_uri
from nanochat.tracking.sync import Sender

UPLOAD_EVERY_SECONDS = 3.0
_RETRY_SECONDS = 10.0
_LAST_ATTEMPTS, _LAST_RETRY_SECONDS = 3, 0.5
"""How often the last upload is tried, and the pause after a failure. The user is waiting for it."""


class Uploader:
    """Uploads a run every few seconds and once more at its end, as well as what earlier runs could not upload.

    `view` builds the current view of the run from local files, `pending` the views of earlier runs that are incomplete
    in MLflow.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        *,
        view: Callable[[], RunView],
        pending: Callable[[], Sequence[RunView]],
        machine: str,
        is_alive: Callable[[int, float], bool],
    ) -> None:
        self._uri, self._experiment = uri, experiment
        self._view, self._pending = view, pending
        self._machine, self._is_alive = machine, is_alive
        self._store: Store | None = None
        self._sender: Sender | None = None
        self._has_caught_up = False
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow-uploader", daemon=True)
        self._problem: str | None = None
        self._problem_of_others: str | None = None

    def start(self) -> None:
        """Start uploading."""
        self._thread.start()

    def stop(self) -> None:
        """Ask for a last upload. `join` waits for it."""
        self._stop.set()
        self._wake.set()

    def join(self, timeout_seconds: float) -> bool:
        """Wait for the last upload to end, and return whether it did."""
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    @property
    def problem(self) -> str | None:
        """Why not everything is uploaded, or None if everything is."""
        if self._thread.is_alive() and self._stop.is_set():
            return self._problem or f"{show_uri(self._uri)} did not answer in time"
        return self._problem or self._problem_of_others

    @property
    def file_on_its_way(self) -> str | None:
        """The file of a model that is being uploaded, with its size, or None. It may take minutes."""
        return None if self._sender is None else self._sender.models.file_on_its_way

    @property
    def notices(self) -> list[str]:
        """What the user should know although the upload succeeded, such as what the store refused."""
        restored = [self._store.notice] if self._store is not None and self._store.notice else []
        refusals = self._sender.refusals if self._sender is not None else []
        registered = self._sender.models.notices if self._sender is not None else []
        return [*restored, *registered, *(f"refused {refusal}; the rest is uploaded" for refusal in refusals)]

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                self._attempt()
                self._wake.wait(UPLOAD_EVERY_SECONDS if self._problem is None else _RETRY_SECONDS)
            for _ in range(_LAST_ATTEMPTS):
                self._attempt()
                if self._problem is None:
                    break
                time.sleep(_LAST_RETRY_SECONDS)
        except BaseException as error:  # a bug, which must not look like a successful upload
            self._problem = f"the upload failed with a bug: {type(error).__name__}: {error}"
            raise

    def _attempt(self) -> None:
        try:
            self._send()
            self._problem = None
        except TrackingOutageError as error:
            self._problem = str(error)
        except OSError as error:  # our own files, for example on a full disk: try again later
            self._problem = f"local files cannot be read or written: {error}"
        except ImportError as error:
            self._problem = f"MLflow is not completely installed: {error}"

    def _send(self) -> None:
        if self._sender is None or self._store is None:
            self._store = open_store(self._uri, self._experiment)
            self._sender = Sender(self._store)
        try:
            self._sender.send(self._view())
        finally:  # a run that fails must not keep earlier ones from being uploaded
            if not self._has_caught_up:
                self._catch_up(self._store, self._sender)

    def _catch_up(self, store: Store, sender: Sender) -> None:
        """Upload what earlier runs could not, once, and close those whose process died. Each run is tried by itself."""
        problems = []
        for view in self._pending():
            try:
                sender.send(view)
            except TrackingOutageError as error:
                probe(store.uri)  # raises if it is the store that fails, and not this run
                problems.append(f"{view.name}: {error}")
        close_stale(store, machine=self._machine, is_alive=self._is_alive)
        self._problem_of_others = "; ".join(problems) or None
        self._has_caught_up = True


def close_stale(store: Store, *, machine: str, is_alive: Callable[[int, float], bool]) -> list[str]:
    """Mark as KILLED the open runs of a machine whose process has ended, and return their ids.

    Nothing is known about the processes of other machines and containers, even if they have the same name.
    `is_alive(pid, started)` returns whether the process `pid` that started at `started` is still running.
    Raises TrackingOutageError if the store does not answer.
    """
    with raise_outages(store.uri):
        closed = []
        pattern = f"attributes.status = 'RUNNING' and tags.{MACHINE_TAG} = '{machine}'"
        for run in store.client.search_runs([store.experiment_id], pattern, max_results=1000):
            try:
                pid, started = int(run.data.tags[PID_TAG]), float(run.data.tags[STARTED_TAG])
            except (KeyError, ValueError):  # not a run of this program
                continue
            if not is_alive(pid, started):
                store.client.set_terminated(run.info.run_id, "KILLED")
                closed.append(run.info.run_id)
        return closed
