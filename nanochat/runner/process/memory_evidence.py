"""Finds out whether a process that a signal ended had run out of memory, rather than being killed or crashing.

Linux counts the processes that its kernel kills for want of memory. Metal, and C++ code in a thread of its own, abort
the process after writing the reason to its log. Without either sign, a killed process is not taken to be one that ran
out of memory: a user or another program may have ended it.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from pathlib import Path

from nanochat.stages.process.exit import reports_out_of_memory

_KERNEL_COUNTERS = Path("/proc/vmstat")
_KILL_COUNTER = "oom_kill"
_WINDOW_SECONDS = 15.0
"""A kill this long before the end counts: a large process takes seconds to release its memory. A longer window would
also count the kills of other programs."""
_LAST_LOG_BYTES = 4096


class MemoryEvidence:
    """Watches the kernel's counter while a process runs, and reads the end of its log afterwards."""

    def __init__(self, log: Path, *, counters: Path = _KERNEL_COUNTERS) -> None:
        self._log, self._counters = log, counters
        self._log_start = log.stat().st_size if log.exists() else 0
        self._kills: deque[tuple[float, int]] = deque()
        self.watch()

    def watch(self) -> None:
        """Read the kernel's counter. Call this often while the process runs."""
        now = time.monotonic()
        self._kills.append((now, self._count_kills()))
        while len(self._kills) > 1 and self._kills[1][0] < now - _WINDOW_SECONDS:
            self._kills.popleft()

    def kernel_killed(self) -> bool:
        """Return whether the kernel has just killed a process for want of memory."""
        return self._count_kills() > self._kills[0][1]

    def log_says_so(self) -> bool:
        """Return whether the last lines that the process wrote report that memory ran out."""
        try:
            with self._log.open("rb") as log:
                log.seek(max(self._log_start, self._log.stat().st_size - _LAST_LOG_BYTES))
                return reports_out_of_memory(log.read().decode("utf-8", errors="replace"))
        except OSError:
            return False

    def _count_kills(self) -> int:
        with contextlib.suppress(OSError):  # macOS has no such file
            for line in self._counters.read_text(encoding="ascii").splitlines():
                name, _, count = line.partition(" ")
                if name == _KILL_COUNTER:
                    return int(count)
        return 0
