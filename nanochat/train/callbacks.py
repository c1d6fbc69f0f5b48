"""The interface between the training loop and its caller: callbacks, intervals, the position, and reports of steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from nanochat.train.step import Rates, Rows, StepResult

RowsType = TypeVar("RowsType", bound=Rows)


@dataclass(frozen=True)
class TrainingPosition:
    """How far training has come: everything that the loop itself must remember across a restart.

    `loss` is that of the last applied step, in nats per token. `best_step` is the first step whose evaluation gave the
    lowest value so far, `best_value`.
    """

    step: int = 0
    loss: float | None = None
    valid_tokens: int = 0
    skipped_steps: int = 0
    nonfinite_streak: int = 0
    best_step: int | None = None
    best_value: float | None = None

    def with_result(self, result: StepResult) -> TrainingPosition:
        """Return the position after the result of its last step is known. On a GPU this waits for it."""
        if result.is_applied:
            return replace(self, loss=float(result.loss), nonfinite_streak=0)
        return replace(self, skipped_steps=self.skipped_steps + 1, nonfinite_streak=self.nonfinite_streak + 1)

    def metrics(self) -> dict[str, float]:
        """Return the results that every stage that trains reports, `loss` only if a step was applied."""
        counts = {"steps": self.step, "skipped_steps": self.skipped_steps, "tokens": self.valid_tokens}
        known = counts if self.loss is None else {**counts, "loss": self.loss}
        return {name: float(value) for name, value in known.items()}


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """How often the loop logs, evaluates, runs suites, samples and saves; None means never.

    If it evaluates or runs suites at all, it also does so at the end of training. It always saves at the end.
    """

    log_every_steps: int = 1
    evaluate_every_steps: int | None = None
    suites_every_steps: int | None = None
    sample_every_steps: int | None = None
    save_every_steps: int | None = None
    save_every_seconds: float | None = None


@dataclass(frozen=True)
class StepReport:
    """A step to log. `seconds` is the mean per step since the last report, without saving and evaluating."""

    position: TrainingPosition
    result: StepResult
    rates: Rates
    seconds: float


@dataclass(frozen=True, kw_only=True)
class LoopCallbacks(Generic[RowsType]):
    """The functions that the loop calls.

    Attributes:
        next_batch: returns the next rows, or None at the end of the data.
        describe_batch: returns, for an error message, where in the data the last batch came from.
        rates: returns the schedules' values after this number of steps; called before the next step's rows are drawn.
        log: called every `log_every_steps` and at the last step.
        save: writes a checkpoint.
        evaluate: measures the model; a lower value is better.
        run_suites: measures the model in other ways, which decide nothing.
        sample: generates text from the model.
        should_stop: returns whether to save and stop. If several processes share the steps, one of them can stop all.
        after_step: called after every step, for progress displays.
        clock: returns seconds, for periodic saves and reports.
    """

    next_batch: Callable[[], RowsType | None]
    describe_batch: Callable[[], str]
    rates: Callable[[int], Rates]
    log: Callable[[StepReport], None]
    save: Callable[[TrainingPosition], None]
    evaluate: Callable[[TrainingPosition], float] | None = None
    run_suites: Callable[[TrainingPosition], None] | None = None
    sample: Callable[[TrainingPosition], None] | None = None
    should_stop: Callable[[], bool] = lambda: False
    after_step: Callable[[TrainingPosition], None] = lambda _: None
    clock: Callable[[], float] = time.monotonic
