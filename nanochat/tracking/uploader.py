"""A thread that keeps MLflow up to date while a run goes on, so that neither its import nor an outage holds the run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from nanochat.tracking.stale import close_stale
from nanochat.tracking.store import Store, TrackingOutageError, open_store
from nanochat.tracking.sync import Sender
from nanochat.tracking.views import RunView

SEND_EVERY_SECONDS = 3.0
_RETRY_SECONDS = 10.0


class Uploader:
    """Sends a run's view every few seconds, and once more at the end; first what earlier runs could not send.

    `view` builds the present view from local files; `pending` the views of earlier runs that are not sent wholly.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        *,
        view: Callable[[], RunView],
        pending: Callable[[], Sequence[RunView]],
        host: str,
        is_alive: Callable[[int, float], bool],
        every_seconds: float = SEND_EVERY_SECONDS,
    ) -> None:
        self._uri, self._experiment = uri, experiment
        self._view, self._pending = view, pending
        self._host, self._is_alive = host, is_alive
        self._every = every_seconds
        self._store: Store | None = None
        self._sender: Sender | None = None
        self._has_caught_up = False
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow-uploader", daemon=True)
        self.problem: str | None = None
        """Why the last attempt failed; None once one succeeded."""
        self.experiment_id: str | None = None

    def start(self) -> None:
        """Begin sending."""
        self._thread.start()

    def close(self, timeout_seconds: float) -> bool:
        """Send the rest and stop; return whether everything arrived within the time."""
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            self.problem = self.problem or f"{self._uri} did not answer in {timeout_seconds:.0f} s"
        return self.problem is None

    def _work(self) -> None:
        while not self._stop.is_set():
            self._attempt()
            self._wake.wait(self._every if self.problem is None else _RETRY_SECONDS)
        self._attempt()

    def _attempt(self) -> None:
        try:
            self._send()
        except TrackingOutageError as error:
            self.problem = str(error)
        else:
            self.problem = None

    def _send(self) -> None:
        if self._sender is None or self._store is None:
            self._store = open_store(self._uri, self._experiment)
            self._sender = Sender(self._store)
            self.experiment_id = self._store.experiment_id
        self._sender.send(self._view())
        if not self._has_caught_up:
            for view in self._pending():
                self._sender.send(view)
            close_stale(self._store, host=self._host, is_alive=self._is_alive)
            self._has_caught_up = True
            self._sender.send(self._view())
