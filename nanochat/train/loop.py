"""The training loop: optimizer steps, with logging, saving, evaluating, suites and samples between them.

Data, evaluation, checkpoints and logs come in as callables, so nothing here knows files or formats. A step ends with
its update; checkpoints, evaluations and samples of a step use the updated model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Generic, cast

from nanochat.errors import InterruptedRun, StageError
from nanochat.train.callbacks import Intervals, LoopCallbacks, RowsType, StepReport, TrainingPosition
from nanochat.train.step import Rates, Step, StepResult
from nanochat.train.time_budget import TimeBudget

MAX_NONFINITE_STEPS = 3
"""This many steps in a row without a finite loss and gradient stop the stage. Fewer are skipped and counted.

A skipped step leaves the weights as they were, so a stage whose last one or two steps are skipped has a model: that of
the step before them. Its validation, or the check before it is written, shows whether it is sound.
"""


def train(
    step: Step,
    callbacks: LoopCallbacks[RowsType],
    intervals: Intervals,
    *,
    last_step: int | None,
    lr_field: str,
    budget: TimeBudget | None = None,
    start: TrainingPosition | None = None,
) -> TrainingPosition:
    """Train to `last_step`, or to the end of the time or the data, and return the last position, saved and evaluated.

    Args:
        last_step: steps in all, including those before `start`; None if the time or the data decide.
        lr_field: the recipe's field for the learning rate, for error messages.
        budget: wall time that training may use; the loop counts what is used.
        start: the position of the checkpoint to resume from; None to start from the beginning. The evaluation, suites
            and sample due at that step are repeated, because the checkpoint was written before them.
    Raises:
        InterruptedRun: training was asked to stop; the position is saved.
        StageError: `MAX_NONFINITE_STEPS` in a row, or all steps, were not finite; the last checkpoint is kept.
    """
    return _Loop(step, callbacks, intervals, last_step, lr_field, budget).run(start)


@dataclass(frozen=True)
class _Votes:
    """Whether to stop, and whether a periodic save is due, as decided before `step` finished."""

    step: int
    should_stop: bool
    is_save_due: bool


class _Loop(Generic[RowsType]):
    def __init__(
        self,
        step: Step,
        callbacks: LoopCallbacks[RowsType],
        intervals: Intervals,
        last_step: int | None,
        lr_field: str,
        budget: TimeBudget | None,
    ):
        self.step, self.callbacks, self.intervals = step, callbacks, intervals
        self.last_step, self.lr_field, self.budget = last_step, lr_field, budget
        self.position = TrainingPosition()
        self.saved_step = self.evaluated_step = self.suites_step = -1
        self.saved_at = callbacks.clock()
        self.busy_seconds, self.steps_since_report, self.step_seconds = 0.0, 0, 0.0
        self.pending: tuple[int, StepResult] | None = None
        """The step whose result has not been read yet: a GPU may still be computing it."""
        self.joint_votes: _Votes | None = None
        """The latest votes of all processes together; None while this process trains alone."""

    def run(self, start: TrainingPosition | None) -> TrainingPosition:
        if start is not None:
            self.position, self.saved_step = start, start.step
            self._evaluate_and_sample()
        while not self._is_at_end():
            # Rates may depend on how much of the data is consumed, so they come before the step's rows are drawn.
            rates = self.callbacks.rates(self.position.step)
            with self._busy():
                batch = self.callbacks.next_batch()
            if batch is None:
                break
            self._train_step(batch, rates)
            self._after_step()
        self._wait_for_step()
        if 0 < self.position.step == self.position.skipped_steps:
            raise self._divergence(self.position.step, "all of the stage")
        self._save()
        self._evaluate()
        self._run_suites()
        return self.position

    def _is_at_end(self) -> bool:
        is_last_step = self.last_step is not None and self.position.step >= self.last_step
        return is_last_step or (self.budget is not None and self.budget.is_spent)

    @contextmanager
    def _busy(self) -> Iterator[None]:
        """Count the time of the block as time of the step."""
        began = self.callbacks.clock()
        yield
        elapsed = self.callbacks.clock() - began
        self.busy_seconds += elapsed
        self.step_seconds += elapsed

    def _train_step(self, batch: RowsType, rates: Rates) -> None:
        with self._busy():
            result = self.step.run(batch, rates=rates, votes=self._local_votes)
            if result.votes is not None and self.joint_votes is None:
                self.joint_votes = _Votes(0, should_stop=False, is_save_due=False)
            self._wait_for_step()  # the step before this one, while a GPU computes this one
            tokens = self.position.valid_tokens + result.valid_tokens
            self.position = replace(self.position, step=self.position.step + 1, valid_tokens=tokens)
            self.pending = (self.position.step, result)
            self.steps_since_report += 1
            if self._is_reported() or isinstance(result.is_applied, bool):
                self._wait_for_step()
        self._count_time()
        if self._is_reported():
            self._wait_for_step()
            self._report(result, rates)
        self.callbacks.after_step(self.position)

    def _is_reported(self) -> bool:
        return self._is_due(self.intervals.log_every_steps) or self._is_at_end()

    def _count_time(self) -> None:
        if self.budget is not None:
            self.budget.add_step(self.step_seconds)
            if self.joint_votes is None:
                self.budget.agree()
        self.step_seconds = 0.0

    def _wait_for_step(self) -> None:
        """Wait for the pending step and record its result. `MAX_NONFINITE_STEPS` in a row raise a StageError."""
        if self.pending is None:
            return
        step, result = self.pending
        self.pending = None
        self.position = self.position.with_result(result)
        if result.votes is not None:
            stops, saves, seconds = cast(list[float], result.votes.tolist())
            self.joint_votes = _Votes(step, should_stop=stops > 0, is_save_due=saves > 0)
            if self.budget is not None:
                self.budget.agree(seconds)
        if self.position.nonfinite_streak >= MAX_NONFINITE_STEPS:
            raise self._divergence(step, f"loss {result.loss.item()}, gradient norm {result.grad_norm.item()}")

    def _report(self, result: StepResult, rates: Rates) -> None:
        self.callbacks.log(StepReport(self.position, result, rates, self.busy_seconds / self.steps_since_report))
        self.busy_seconds, self.steps_since_report = 0.0, 0

    def _after_step(self) -> None:
        """Save, stop, evaluate and sample, as far as they are due."""
        intervals = self.intervals
        should_stop, is_save_due = self._decision()
        # An evaluation that crashes must not cost the steps before it, so the checkpoint is written first.
        uses = (intervals.evaluate_every_steps, intervals.suites_every_steps, intervals.sample_every_steps)
        if should_stop or is_save_due or any(map(self._is_due, (*uses, intervals.save_every_steps))):
            self._save()
        if should_stop:
            of = "" if self.last_step is None else f" of {self.last_step:,}"
            raise InterruptedRun(f"stopped after step {self.position.step:,}{of}, saved; the same command continues")
        self._evaluate_and_sample()

    def _local_votes(self) -> tuple[bool, bool, float]:
        """Return whether this process wants to stop, whether a periodic save is due by its clock, and the used time.

        The used time is 0 unless this process's clock counts, so that the sum over all processes is that clock.
        """
        every = self.intervals.save_every_seconds
        is_save_due = every is not None and self.callbacks.clock() - self.saved_at >= every
        used = self.budget.used if self.budget is not None and self.budget.leads else 0.0
        return self.callbacks.should_stop(), is_save_due, used

    def _decision(self) -> tuple[bool, bool]:
        """Return whether to stop, and whether a periodic save is due.

        If several processes share the steps, the vote of any of them decides. All read the result of the same step at
        the same point, so all decide alike. On a GPU the votes are one step old; a save since then is not repeated.
        """
        votes = self.joint_votes
        if votes is None:
            should_stop, is_save_due, _ = self._local_votes()
            return should_stop, is_save_due
        return votes.should_stop, votes.is_save_due and votes.step > self.saved_step

    def _evaluate_and_sample(self) -> None:
        if self._is_due(self.intervals.evaluate_every_steps):
            self._evaluate()
        if self._is_due(self.intervals.suites_every_steps):
            self._run_suites()
        if self._is_due(self.intervals.sample_every_steps) and self.callbacks.sample is not None:
            self.callbacks.sample(self.position)

    def _save(self) -> None:
        with self._busy():
            self._wait_for_step()
        if self.saved_step != self.position.step:
            self.callbacks.save(self.position)
            self.saved_step, self.saved_at = self.position.step, self.callbacks.clock()

    def _evaluate(self) -> None:
        evaluate = self.callbacks.evaluate if self.intervals.evaluate_every_steps is not None else None
        if evaluate is None or self.evaluated_step == self.position.step:
            return
        self._wait_for_step()
        self.evaluated_step = self.position.step
        value = evaluate(self.position)
        if self.position.best_value is None or value < self.position.best_value:
            self.position = replace(self.position, best_step=self.position.step, best_value=value)

    def _run_suites(self) -> None:
        run_suites = self.callbacks.run_suites if self.intervals.suites_every_steps is not None else None
        if run_suites is None or self.suites_step == self.position.step:
            return
        self._wait_for_step()
        self.suites_step = self.position.step
        run_suites(self.position)

    def _is_due(self, every: int | None) -> bool:
        return every is not None and self.position.step > 0 and self.position.step % every == 0

    def _divergence(self, step: int, remark: str) -> StageError:
        """Return the error that the steps up to this one were skipped. `remark` says more about them."""
        streak = self.position.nonfinite_streak
        steps = f"step {step:,}" if streak == 1 else f"steps {step - streak + 1:,} to {step:,}"
        saved = f"the checkpoint of step {self.saved_step:,} is kept" if self.saved_step >= 0 else "nothing was saved"
        return StageError(
            f"diverged: loss or gradients were not finite in {steps} ({remark})\n"
            f"  batch of step {self.position.step:,}: {self.callbacks.describe_batch()}\n"
            f"  {saved}; lower the learning rate (`{self.lr_field}`) or look at the data there"
        )
