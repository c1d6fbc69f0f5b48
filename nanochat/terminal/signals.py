"""The signals that ask a program to stop, and handlers that respect `nohup`."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, `kill` or a shutdown, and a closed terminal."""

Handler = Callable[[int, FrameType | None], None]


def handle_signals(numbers: Iterable[signal.Signals], handler: Handler) -> dict[signal.Signals, Any]:
    """Set the handler of signals and return the previous ones. Call this in the main thread.

    A signal that is ignored stays ignored: `nohup` ignores SIGHUP for the programs that it starts, and shells ignore
    SIGINT for programs in the background.
    """
    unhandled = (signal.SIG_IGN, None)
    handled = [number for number in numbers if signal.getsignal(number) not in unhandled]
    return {number: signal.signal(number, handler) for number in handled}
