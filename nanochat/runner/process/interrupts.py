"""Signals during a run: Ctrl-C and a closed terminal stop it, Ctrl-Z suspends it and all its processes.

The first SIGINT, SIGTERM or SIGHUP asks the run to save and stop, the second to stop at once.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import psutil

from nanochat.terminal.signals import STOP_SIGNALS, handle_signals


class Interrupts:
    """Context manager that counts the signals to stop instead of letting them end the process (main thread only).

    `before_suspension` is called when Ctrl-Z was pressed, for example to restore the terminal.
    """

    def __init__(self, before_suspension: Callable[[], None] = lambda: None) -> None:
        self.count = 0
        self._before_suspension = before_suspension
        self._is_hung_up = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._previous = handle_signals(STOP_SIGNALS, self._count)
            self._previous |= handle_signals((signal.SIGTSTP,), self._suspend)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _count(self, number: int, _frame: FrameType | None) -> None:
        # A terminal that is closed sends SIGHUP, and its shell sends it again: that is one request.
        if number != signal.SIGHUP or not self._is_hung_up:
            self.count += 1
        self._is_hung_up |= number == signal.SIGHUP

    def _suspend(self, _number: int, _frame: FrameType | None) -> None:
        """Suspend this process and all its descendants until it is continued, as the shell's `fg` does.

        A stage's process has a session of its own, so the terminal's signal does not reach it.
        """
        self._before_suspension()
        stopped = _stop_descendants()
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.pthread_kill(threading.get_ident(), signal.SIGTSTP)  # to this thread: it stops before the next line
        signal.signal(signal.SIGTSTP, handler)
        for process in stopped:
            with contextlib.suppress(psutil.Error):
                process.resume()


def _stop_descendants() -> list[psutil.Process]:
    """Stop and return all descendants. A second round finds the processes that they started in the meantime."""
    stopped: list[psutil.Process] = []
    while new := [process for process in psutil.Process().children(recursive=True) if process not in stopped]:
        for process in new:
            with contextlib.suppress(psutil.Error):
                process.suspend()
        stopped += new
    return stopped
