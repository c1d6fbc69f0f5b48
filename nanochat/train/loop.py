"""The training loop: steps from a position to the end, and what happens between them.

Data, evaluation, saving and logging come in as callables, so that nothing here knows files or formats. A step counts
as done after its update; whatever looks at the model at a step looks after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar, cast

from nanochat.errors import InterruptedRun, StageError
from nanochat.train.step import Rates, Rows, StepResult, TrainStep

MAX_NONFINITE_STEPS = 3
"""So many steps in a row without a finite loss and gradient end the stage; fewer are skipped and counted."""

RowsType = TypeVar("RowsType", bound=Rows)


@dataclass(frozen=True)
class TrainingPosition:
    """How far training is: all that the loop itself must remember across a restart."""

    step: int = 0
    loss: float | None = None
    """Of the last step that was applied, nats per token."""
    valid_tokens: int = 0
    skipped_steps: int = 0
    nonfinite_streak: int = 0
    best_step: int | None = None
    best_value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """How often things happen; None is never. Evaluating includes the end of training, saving always does."""

    log_every_steps: int = 1
    evaluate_every_steps: int | None = None
    sample_every_steps: int | None = None
    save_every_steps: int | None = None
    save_every_seconds: float | None = None


@dataclass(frozen=True)
class StepReport:
    """What is known after a step: `seconds` per step since the last report, saving and evaluating left out."""

    position: TrainingPosition
    result: StepResult
    rates: Rates
    seconds: float


@dataclass(frozen=True, kw_only=True)
class LoopCallbacks(Generic[RowsType]):
    """What the loop is joined to.

    Attributes:
        next_batch: the next rows, or None where the data ends.
        describe_batch: where in the data the rows last handed out are from, for an error's message.
        rates: the schedules' values for the step after so many done; called before its rows are drawn.
        log: called with a report every `log_every_steps` and at the last step.
        save: makes the position, the model and everything else durable.
        evaluate: measures the model and returns a value, lower is better.
        sample: lets the model speak.
        should_stop: whether to save and stop; where several processes share the steps, one asks for all.
        after_step: called after every step with the position, for progress.
        clock: seconds, for periodic saves and reports.
    """

    next_batch: Callable[[], RowsType | None]
    describe_batch: Callable[[], str]
    rates: Callable[[int], Rates]
    log: Callable[[StepReport], None]
    save: Callable[[TrainingPosition], None]
    evaluate: Callable[[TrainingPosition], float] | None = None
    sample: Callable[[TrainingPosition], None] | None = None
    should_stop: Callable[[], bool] = lambda: False
    after_step: Callable[[TrainingPosition], None] = lambda _: None
    clock: Callable[[], float] = time.monotonic


def train(
    step: TrainStep,
    callbacks: LoopCallbacks[RowsType],
    intervals: Intervals,
    *,
    last_step: int | None,
    start: TrainingPosition | None = None,
) -> TrainingPosition:
    """Train to `last_step`, or to the end of the data, and return the last position, saved and evaluated.

    Args:
        step: does the work on the model.
        callbacks: what the loop is joined to.
        intervals: how often they are called.
        last_step: steps in all, those before `start` included; None where only the data's end counts.
        start: the position a checkpoint was saved at; None for a fresh start. What was due at that step is done
            again, for the checkpoint was written before it.

    Raises:
        InterruptedRun: asked to stop; the position is saved.
        StageError: three steps in a row were not finite; the last checkpoint stays.
    """
    return _Loop(step, callbacks, intervals, last_step).run(start)


class _Loop(Generic[RowsType]):
    def __init__(
        self, step: TrainStep, callbacks: LoopCallbacks[RowsType], intervals: Intervals, last_step: int | None
    ):
        self.step, self.callbacks, self.intervals, self.last_step = step, callbacks, intervals, last_step
        self.position = TrainingPosition()
        self.saved_step = self.evaluated_step = self.sampled_step = -1
        self.saved_at = callbacks.clock()
        self.busy_seconds, self.steps_since_report = 0.0, 0
        self.under_way: tuple[int, StepResult] | None = None
        self.agreed: tuple[int, bool, bool] | None = None

    def run(self, start: TrainingPosition | None) -> TrainingPosition:
        if start is not None:
            self.position, self.saved_step = start, start.step
            self._look()
        while not self._is_at_end():
            # Rates may depend on how much of the data is consumed: asked for before the step's rows are drawn.
            rates = self.callbacks.rates(self.position.step)
            batch = self._next()
            if batch is None:
                break
            self._advance(batch, rates)
            self._save_and_look()
        self._save()
        self._evaluate()
        return self.position

    def _is_at_end(self) -> bool:
        return self.last_step is not None and self.position.step >= self.last_step

    def _next(self) -> RowsType | None:
        began = self.callbacks.clock()
        batch = self.callbacks.next_batch()
        self.busy_seconds += self.callbacks.clock() - began
        return batch

    def _advance(self, batch: RowsType, rates: Rates) -> None:
        began = self.callbacks.clock()
        result = self.step.run(batch, rates=rates, votes=self._wishes)
        if result.votes is not None and self.agreed is None:
            self.agreed = (0, False, False)
        self._settle()  # the step before: a GPU computes this one meanwhile
        tokens = self.position.valid_tokens + result.valid_tokens
        self.position = replace(self.position, step=self.position.step + 1, valid_tokens=tokens)
        self.under_way = (self.position.step, result)
        self.steps_since_report += 1
        is_reported = self._is_due(self.intervals.log_every_steps) or self._is_at_end()
        if is_reported or isinstance(result.is_applied, bool):
            self._settle()
        self.busy_seconds += self.callbacks.clock() - began
        if is_reported:
            self._report(result, rates)
        self.callbacks.after_step(self.position)

    def _settle(self) -> None:
        """Take in what the step under way measured, waiting for it.

        Raises:
            StageError: it is the last of too many that were not finite.
        """
        if self.under_way is None:
            return
        step, result = self.under_way
        self.under_way = None
        self.position = _after(self.position, result)
        if result.votes is not None:
            stops, is_late = (vote > 0 for vote in cast(list[float], result.votes.tolist()))
            self.agreed = (step, stops, is_late)
        if self.position.nonfinite_streak >= MAX_NONFINITE_STEPS:
            raise StageError(self._divergence(step, result))

    def _report(self, result: StepResult, rates: Rates) -> None:
        self.callbacks.log(StepReport(self.position, result, rates, self.busy_seconds / self.steps_since_report))
        self.busy_seconds, self.steps_since_report = 0.0, 0

    def _save_and_look(self) -> None:
        intervals = self.intervals
        stops, is_late = self._wishes() if self.agreed is None else self._agreement(*self.agreed)
        # Saved before it is looked at: an evaluation that dies must not cost the steps before it.
        is_looked_at = self._is_due(intervals.evaluate_every_steps) or self._is_due(intervals.sample_every_steps)
        if stops or is_late or is_looked_at or self._is_due(intervals.save_every_steps):
            self._save()
        if stops:
            of = "" if self.last_step is None else f" of {self.last_step:,}"
            raise InterruptedRun(f"stopped after step {self.position.step:,}{of}, saved; the same command continues")
        self._look()

    def _wishes(self) -> tuple[bool, bool]:
        """Return whether this process would stop, and whether it is time for it to save."""
        every = self.intervals.save_every_seconds
        return self.callbacks.should_stop(), every is not None and self.callbacks.clock() - self.saved_at >= every

    def _agreement(self, step: int, stops: bool, is_late: bool) -> tuple[bool, bool]:
        """Return what the processes that share the steps do as one: what any of them wished before `step`.

        All settle the same steps at the same points, so all come to the same answer. On a GPU it is a step old; a save
        since then has fulfilled the wish for one.
        """
        return stops, is_late and step > self.saved_step

    def _look(self) -> None:
        if self._is_due(self.intervals.evaluate_every_steps):
            self._evaluate()
        if self._is_due(self.intervals.sample_every_steps) and self.callbacks.sample is not None:
            self.callbacks.sample(self.position)

    def _save(self) -> None:
        self._settle()
        if self.saved_step != self.position.step:
            self.callbacks.save(self.position)
            self.saved_step, self.saved_at = self.position.step, self.callbacks.clock()

    def _evaluate(self) -> None:
        never = self.callbacks.evaluate is None or self.intervals.evaluate_every_steps is None
        if never or self.evaluated_step == self.position.step:
            return
        assert self.callbacks.evaluate is not None
        self._settle()
        self.evaluated_step = self.position.step
        value = self.callbacks.evaluate(self.position)
        if self.position.best_value is None or value < self.position.best_value:
            self.position = replace(self.position, best_step=self.position.step, best_value=value)

    def _is_due(self, every: int | None) -> bool:
        return every is not None and self.position.step > 0 and self.position.step % every == 0

    def _divergence(self, at: int, result: StepResult) -> str:
        saved = f"the checkpoint of step {self.saved_step:,} is kept" if self.saved_step >= 0 else "nothing was saved"
        return (
            f"diverged: loss or gradients were not finite in steps {at - MAX_NONFINITE_STEPS + 1:,} to {at:,} "
            f"(loss {result.loss.item()}, gradient norm {result.grad_norm.item()})\n"
            f"  batch of step {at:,}: {self.callbacks.describe_batch()}\n"
            f"  {saved}; lower the learning rate (`optimizer.lr_scale`) or look at the data there"
        )


def _after(position: TrainingPosition, result: StepResult) -> TrainingPosition:
    skipped = int(not result.is_applied)
    return replace(
        position,
        loss=position.loss if skipped else float(result.loss),
        skipped_steps=position.skipped_steps + skipped,
        nonfinite_streak=position.nonfinite_streak + 1 if skipped else 0,
    )
