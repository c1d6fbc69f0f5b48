"""The wall time that training may use, for a horizon in minutes.

The time of steps counts, and that of reading their data. Starting, saving, validating and sampling do not. In the first
steps of a process, kernels are compiled, so these steps count no more than an average step before the process started:
nothing in a new run. If several processes share the steps, all act on the clock of the first, as it was a step or two
ago.
"""

from __future__ import annotations

COMPILING_STEPS = 2
"""The first step of a process compiles kernels. On a GPU the second one waits for the first."""


class TimeBudget:
    """A number of seconds, and how much of it is used. `leads` is true of the process whose clock counts."""

    def __init__(self, seconds: float, *, leads: bool = True):
        self.seconds = seconds
        self.leads = leads
        self.used = 0.0
        """By this process's clock, with the time before a restart."""
        self._agreed = 0.0
        self._steps, self._mean_step = 0, 0.0

    @property
    def share(self) -> float:
        """The share of the time that is used, from 0 to 1: the same in all processes."""
        return min(self._agreed / self.seconds, 1.0)

    @property
    def is_spent(self) -> bool:
        return self._agreed >= self.seconds

    def resume(self, used: float, *, steps: int) -> None:
        """Continue after a restart, when `steps` steps had used this number of seconds."""
        self.used = self._agreed = used
        self._mean_step = used / max(1, steps)

    def add_step(self, seconds: float) -> None:
        """Count the time of a step."""
        self._steps += 1
        self.used += seconds if self._steps > COMPILING_STEPS else min(seconds, self._mean_step)

    def agree(self, used: float | None = None) -> None:
        """Act on the seconds of the leading process from now on. Default: this process's own."""
        self._agreed = self.used if used is None else used
