"""Generates the answers of all clients together, in a thread of its own.

MLX arrays belong to the thread that made them, so this thread loads the model too. Clients submit requests and receive
tokens through a callback. Not here: text, HTTP (`answers`, `app`).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from nanochat.errors import NanochatError
from nanochat.inference.engine import Batch, Engine
from nanochat.inference.generation import Completion, Request

_POLL_SECONDS = 0.2
"""How long an idle thread waits before it checks whether it should end."""


class BusyError(Exception):
    """The queue of waiting requests is full, or the server is shutting down."""


class FailedError(Exception):
    """The thread has ended with an error, and no answer can be generated any more."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause) if isinstance(cause, NanochatError) else f"{type(cause).__name__}: {cause}")


@dataclass(frozen=True)
class Tokens:
    """New tokens of an answer."""

    ids: list[int]
    ended: Literal["stop", "length"] | None
    """Why the answer ended; None while it is unfinished."""


@dataclass(eq=False)
class Job:
    """A request of a client."""

    request: Request
    deliver: Callable[[Tokens | Exception], None]
    """Called in the generator's thread with each delivery; the last one has `ended`, or is the error."""
    is_cancelled: threading.Event = field(default_factory=threading.Event)


class Generator:
    """The thread, its queue, and the model."""

    def __init__(self, load: Callable[[], Engine], *, max_rows: int, max_waiting: int) -> None:
        """Prepare a generator.

        Args:
            load: loads the model; called in the thread.
            max_rows: answers that are generated at a time. More wait.
            max_waiting: requests that may wait. More are refused.
        """
        self._load, self._max_rows, self._max_waiting = load, max_rows, max_waiting
        self._inbox: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._jobs: dict[Completion, Job] = {}
        self._waiting: list[Job] = []
        self._is_ready, self._is_closing = threading.Event(), threading.Event()
        self.failure: Exception | None = None
        """The error that ended the thread, if it has failed."""
        self._submitting = threading.Lock()
        """Held while a job is queued, so that none is queued after the thread has failed."""
        self.on_failure: Callable[[], None] = lambda: None
        """Called in the thread after it has failed and its clients know."""
        self._engine: Engine | None = None
        self._thread = threading.Thread(target=self._run, name="generator", daemon=True)

    def start(self) -> Engine:
        """Load the model and begin; return the engine, or raise what loading raises."""
        self._thread.start()
        self._is_ready.wait()
        if self.failure is not None:
            raise self.failure
        assert self._engine is not None, "it was loaded"
        return self._engine

    @property
    def load(self) -> tuple[int, int]:
        """How many answers are being generated, and how many requests wait."""
        return len(self._jobs), len(self._waiting) + self._inbox.qsize()

    def submit(self, job: Job) -> None:
        """Queue a request.

        Raises:
            BusyError, FailedError: as in `check_room`.
            RecipeError: the request cannot be answered, such as a prompt that leaves no room in the context.
        """
        assert self._engine is not None, "the generator has started"
        self._engine.check(job.request)
        with self._submitting:
            self.check_room()
            self._inbox.put(job)

    def check_room(self) -> None:
        """Raise what `submit` would raise for the next request, unless the request is wrong.

        Raises:
            BusyError: too many requests wait, or the server is shutting down.
            FailedError: the thread has ended with an error.
        """
        if self.failure is not None:
            raise FailedError(self.failure)
        if self._is_closing.is_set() or not self._thread.is_alive():
            raise BusyError("the server is shutting down")
        if self.load[1] >= self._max_waiting:
            raise BusyError(f"{self._max_waiting} requests are waiting already; try again later")

    def close(self) -> None:
        """End the thread, and the answers for which a client may still wait."""
        self._is_closing.set()
        for job in (*self._waiting, *self._jobs.values()):
            job.is_cancelled.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            self._engine = self._load()
        except Exception as error:  # noqa: BLE001 -- `start` raises it again in the thread that waits
            self.failure = error
            return
        finally:
            self._is_ready.set()
        try:
            self._generate(Batch(self._engine))
        except Exception as error:  # noqa: BLE001 -- every client must hear of it
            self._fail(error)

    def _generate(self, batch: Batch) -> None:
        while len(batch) or self._collect():
            self._collect()
            self._drop_cancelled(batch)
            self._admit(batch)
            if len(batch):
                self._deliver(batch.step())

    def _collect(self) -> bool:
        """Take new requests from the inbox. Without any work, wait for one; return False if the thread should end."""
        while True:
            try:
                is_idle = not self._jobs and not self._waiting
                self._waiting.append(self._inbox.get(block=is_idle, timeout=_POLL_SECONDS))
            except queue.Empty:
                if not is_idle:
                    return True
                if self._is_closing.is_set():
                    return False

    def _admit(self, batch: Batch) -> None:
        joining = self._waiting[: max(0, self._max_rows - len(batch))]
        if joining:
            completions = batch.add([job.request for job in joining])  # if it fails, these jobs hear of it
            del self._waiting[: len(joining)]
            self._jobs |= dict(zip(completions, joining, strict=True))

    def _drop_cancelled(self, batch: Batch) -> None:
        self._waiting = [job for job in self._waiting if not job.is_cancelled.is_set()]
        for completion in [completion for completion, job in self._jobs.items() if job.is_cancelled.is_set()]:
            batch.cancel(completion)
            del self._jobs[completion]

    def _deliver(self, continued: list[Completion]) -> None:
        for completion in continued:
            job = self._jobs[completion]
            is_new = completion.ended != "stop"  # the token that stops an answer is not part of it
            job.deliver(Tokens(completion.tokens[-1:] if is_new else [], completion.ended))
            if completion.ended is not None:
                del self._jobs[completion]

    def _fail(self, error: Exception) -> None:
        """Deliver an error to everybody, now and later."""
        with self._submitting:
            self.failure = error
        self._waiting += [self._inbox.get_nowait() for _ in range(self._inbox.qsize())]
        for job in (*self._jobs.values(), *self._waiting):
            job.deliver(FailedError(error))
        self._jobs, self._waiting = {}, []
        self.on_failure()
