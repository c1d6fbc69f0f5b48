"""Producing items ahead of time in a thread, in order."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")

_POLL_SECONDS = 0.1


class Prefetcher(Generic[Item]):
    """Calls `produce` in a thread and keeps up to `depth` results ready for `next`.

    An exception of `produce`, StopIteration included, ends the thread. `next` raises it once the results before it
    have been returned.
    """

    def __init__(self, produce: Callable[[], Item], depth: int) -> None:
        self._produce = produce
        self._ready: queue.Queue[Item | _Failure] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._failure: _Failure | None = None
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    def next(self) -> Item:
        """Wait for the next result and return it, or raise the exception of `produce`."""
        if self._failure is None:
            item = self._ready.get()
            if not isinstance(item, _Failure):
                return item
            self._failure = item
        raise self._failure.error

    def close(self) -> None:
        """End the thread and drop the results that `next` has not returned."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                item: Item | _Failure = self._produce()
            except BaseException as error:  # noqa: BLE001 -- `next` raises it again in the thread that waits
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


@dataclass(frozen=True)
class _Failure:
    error: BaseException
