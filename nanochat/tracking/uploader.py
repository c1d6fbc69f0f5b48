"""A thread that keeps MLflow up to date while a run goes on, so that neither its import nor an outage holds the run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from nanochat.tracking.run_view import RunView
from nanochat.tracking.stale import close_stale
from nanochat.tracking.store import Store, TrackingOutageError, open_store, show_uri
from nanochat.tracking.sync import Sender

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
        self._problem: str | None = None

    def start(self) -> None:
        """Begin sending."""
        self._thread.start()

    def stop(self) -> None:
        """Ask for a last sending; `join` waits for it."""
        self._stop.set()
        self._wake.set()

    def join(self, timeout_seconds: float) -> bool:
        """Wait for the end of the last sending; return whether it came."""
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def close(self, timeout_seconds: float) -> bool:
        """Send the rest and stop; return whether everything arrived within the time."""
        self.stop()
        return self.join(timeout_seconds) and self.problem is None

    @property
    def problem(self) -> str | None:
        """Why not everything is sent; None where everything is."""
        if self._thread.is_alive() and self._stop.is_set():
            return self._problem or f"{show_uri(self._uri)} did not answer in time"
        return self._problem

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                self._attempt()
                self._wake.wait(self._every if self._problem is None else _RETRY_SECONDS)
            self._attempt()
        except BaseException as error:  # a bug: nobody may take the silence after it for success
            self._problem = f"the sending broke down: {type(error).__name__}: {error}"
            raise

    def _attempt(self) -> None:
        try:
            self._send()
        except TrackingOutageError as error:
            self._problem = str(error)
        except OSError as error:  # our own files: a full disk must not end the sending for good
            self._problem = f"the local files: {error}"
        except ImportError as error:
            self._problem = f"MLflow's installation is not whole: {error}"
        else:
            self._problem = None

    def _send(self) -> None:
        if self._sender is None or self._store is None:
            self._store = open_store(self._uri, self._experiment)
            self._sender = Sender(self._store)
        self._sender.send(self._view())
        if not self._has_caught_up:
            for view in self._pending():
                self._sender.send(view)
            close_stale(self._store, host=self._host, is_alive=self._is_alive)
            self._has_caught_up = True
            self._sender.send(self._view())
