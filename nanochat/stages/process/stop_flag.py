"""Signals of a stage's process: the first asks the stage to save and stop, the second ends the process at once.

A Python signal handler runs only after the main thread has left C code, which takes seconds inside an MLX evaluation.
So a thread reads the signals from a pipe instead. It may safely end the process, because all important files are
written atomically.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time

from nanochat.errors import InterruptedRun
from nanochat.terminal.signals import STOP_SIGNALS, handle_signals

SAME_PRESS_SECONDS = 0.3
"""Signals closer together count as one: Ctrl-C may arrive from the terminal and from the parent."""
_PARENT_POLL_SECONDS = 0.25


class StopFlag:
    """A flag that the first signal sets. With `is_final` it ends the process, for a stage that has nothing to save."""

    def __init__(self, *, is_final: bool = False) -> None:
        self._is_final = is_final
        self._event = threading.Event()
        self._last_signal = -SAME_PRESS_SECONDS

    def __call__(self) -> bool:
        """Return whether the stage should save and stop."""
        return self._event.is_set()

    def install(self) -> None:
        """Handle the signals to stop that are not ignored, and watch the parent. Call this once, in the main thread."""
        receiver, sender = socket.socketpair()
        sender.setblocking(False)
        signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        handle_signals(STOP_SIGNALS, _do_nothing)
        signal.signal(signal.SIGTERM, _do_nothing)  # always, because it is the parent's request
        # The thread keeps `sender` alive: closing it would end the wake-ups.
        threading.Thread(target=self._watch_signals, args=(receiver, sender), daemon=True).start()
        threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()

    def _watch_signals(self, receiver: socket.socket, _sender: socket.socket) -> None:
        while received := receiver.recv(64):
            if any(number in received for number in STOP_SIGNALS):
                self._count(time.monotonic())

    def _count(self, now: float) -> None:
        repeated = now - self._last_signal < SAME_PRESS_SECONDS
        self._last_signal = now
        if self._is_final or (self._event.is_set() and not repeated):
            os._exit(InterruptedRun.exit_code)
        self._event.set()


def _do_nothing(_number: int, _frame: object) -> None:
    """Keep Python from raising KeyboardInterrupt: the thread handles the byte that arrives in the pipe."""


def _watch_parent(parent: int) -> None:
    """End the process once its parent has ended: its result would not be recorded, and a new run may use the folder."""
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_SECONDS)
    os._exit(InterruptedRun.exit_code)
