"""Tries again to reach a server after a temporary error, and names the errors of such attempts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

_ATTEMPTS = 5
_PAUSE_SECONDS = 0.05
"""The unit of the pauses, which grow fourfold."""
_TEMPORARY = (408, 425, 429)
"""Statuses below 500 after which another attempt may succeed."""
_T = TypeVar("_T")


class TemporaryError(Exception):
    """There was no usable answer. Another attempt may succeed. Callers turn it into a PreflightError."""


class StatusError(Exception):
    """The server answered with an error status. Callers turn it into a PreflightError."""

    def __init__(self, status: int, headers: Mapping[str, str], *, is_elsewhere: bool) -> None:
        super().__init__(f"the server answers {status}")
        self.status = status
        self.headers = headers
        self.is_elsewhere = is_elsewhere
        """Whether redirects have led to another server."""

    @property
    def is_temporary(self) -> bool:
        """Whether another attempt may succeed."""
        return self.status >= 500 or self.status in _TEMPORARY


def retry(act: Callable[[], _T], *, stopped: threading.Event | None = None) -> _T:
    """Return the result of `act`. After temporary errors, call it again, with growing pauses, unless `stopped` is set.

    Raises:
        TemporaryError: there was no usable answer to the last attempt, or `stopped` was set before the first.
        StatusError: the server refuses, or the last attempt ended with a temporary error status.
    """
    problem: Exception = TemporaryError("stopped")
    for attempt in range(_ATTEMPTS):
        if (stopped or threading.Event()).wait(_PAUSE_SECONDS * (4**attempt - 1)):
            break
        try:
            return act()
        except TemporaryError as error:
            problem = error
        except StatusError as error:
            if not error.is_temporary:
                raise
            problem = error
    raise problem
