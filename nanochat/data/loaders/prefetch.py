"""Making things ahead of time in a thread, in order, with errors passed on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")

_POLL_SECONDS = 0.1


class Prefetcher(Generic[Item]):
    """Calls `produce` in a thread of its own and holds up to `depth` results; `next` hands them out in order.

    What `produce` raises is raised by the `next` whose turn it was, StopIteration included, and ends the thread.
    """

    def __init__(self, produce: Callable[[], Item], depth: int) -> None:
        self._produce = produce
        self._ready: queue.Queue[Item | _Failure] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._failure: _Failure | None = None
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    def next(self) -> Item:
        """Return the next result, waiting for it; raises what `produce` raised."""
        if self._failure is None:
            item = self._ready.get()
            if not isinstance(item, _Failure):
                return item
            self._failure = item
        raise self._failure.error

    def close(self) -> None:
        """End the thread; what was made and not handed out is lost."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                item: Item | _Failure = self._produce()
            except BaseException as error:  # noqa: BLE001 -- raised again by `next`, in the thread that waits for it
                item = _Failure(error)
            self._put(item)
            if isinstance(item, _Failure):
                return

    def _put(self, item: Item | _Failure) -> None:
        while not self._stopped.is_set():
            try:
                self._ready.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return


class _Failure:
    """What `produce` raised."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
