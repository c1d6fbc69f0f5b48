"""The horizon of a training stage, and the learning rates and progress that follow from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nanochat.plan.quantities import show_clock
from nanochat.train.step import Rates
from nanochat.train.time_budget import TimeBudget


@dataclass(frozen=True, kw_only=True)
class TrainingSchedule:
    """The size of a step, the last step (None: the time or the data decide), and the rates at each step."""

    tokens_per_step: int
    last_step: int | None
    rates: Callable[[int], Rates]
    fraction: Callable[[int], float]
    """Maps the number of steps done to the fraction of training done, for progress."""
    budget: TimeBudget | None = None
    """The wall time that training may use. Rates and fraction then follow it."""

    def describe_step(self, step: int) -> str:
        """Return `step 12/400`, or `step 12, 0:34 of 5:00` with a horizon in minutes."""
        if self.budget is not None:
            return f"step {step:,}, {show_clock(self.budget.used)} of {show_clock(self.budget.seconds)}"
        return f"step {step:,}" + ("" if self.last_step is None else f"/{self.last_step:,}")
