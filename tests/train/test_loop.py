"""Tests of when the loop logs, saves, evaluates and stops, and of how it resumes."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import pytest

from nanochat.errors import InterruptedRun, StageError
from nanochat.train.callbacks import Intervals, LoopCallbacks, TrainingPosition
from nanochat.train.loop import train
from nanochat.train.step import Rates, StepResult
from nanochat.train.time_budget import TimeBudget


class FakeStep:
    """Step k, counted from 1, has the loss `losses[k]`, else 1 / k, and takes a second of the run's clock.

    With `others`, which returns a second process's votes before each step, two processes share the steps. With
    `is_ahead`, results arrive late, as on a GPU.
    """

    def __init__(self, fake_run, losses, others=None, is_ahead=False):
        self.fake_run, self.losses, self.others, self.is_ahead = fake_run, losses, others, is_ahead

    def run(self, batch, *, rates, votes=tuple):
        self.fake_run.now += 1
        self.fake_run.events.append(("step", batch, rates.lr_multiplier))
        loss = self.losses.get(batch, 1 / batch)
        applied = loss == loss and abs(loss) != float("inf")
        voted = None
        if self.others is not None:
            self.fake_run.voted_seconds.append(votes()[2])
            voted = mx.array([float(a) + float(b) for a, b in zip(votes(), self._others_votes(batch), strict=True)])
        is_applied = mx.array(applied) if self.is_ahead else applied
        return StepResult(mx.array(loss), mx.array(2.0), valid_tokens=10, is_applied=is_applied, votes=voted)

    def _others_votes(self, batch):
        """Return the second process's votes, and the seconds that it has used if its clock counts."""
        return (*self.others(batch), 0.0)[:3]


class FakeRun:
    """Records the loop's calls; `position` is the one that a checkpoint would restore."""

    def __init__(self, batches=100, losses=None, values=None, stop_at=None):
        self.events, self.now, self.position, self.batch = [], 0.0, None, 0
        self.batches, self.losses, self.values, self.stop_at = batches, losses or {}, values or {}, stop_at
        self.voted_seconds = []

    def next_batch(self):
        if self.batch == self.batches:
            return None
        self.batch += 1
        return self.batch

    def save(self, position):
        self.now += 100
        self.position = position
        self.events.append(("save", position.step))

    def evaluate(self, position):
        self.now += 100
        self.events.append(("evaluate", position.step))
        return self.values.get(position.step, 1.0)

    def train(self, intervals, *, last_step, start=None, budget=None, **shared):
        self.batch = 0 if start is None else start.step
        callbacks = LoopCallbacks(
            next_batch=self.next_batch,
            describe_batch=lambda: f"document {self.batch * 7}",
            rates=lambda done: Rates(budget.share if budget is not None else done / 10, 0.9, 0.0),
            log=lambda report: self.events.append(("log", report.position.step, report.seconds)),
            save=self.save,
            evaluate=self.evaluate,
            sample=lambda position: self.events.append(("sample", position.step)),
            should_stop=lambda: self.batch == self.stop_at,
            clock=lambda: self.now,
        )
        step = FakeStep(self, self.losses, **shared)
        return train(
            step, callbacks, intervals, last_step=last_step, lr_field="sft.lr_scale", budget=budget, start=start
        )

    def rates(self):
        return [event[2] for event in self.events if event[0] == "step"]

    def of(self, *kinds):
        return [event[:2] for event in self.events if event[0] in kinds]


NEVER = Intervals(log_every_steps=1000)


def test_loop_asks_for_the_rates_of_the_steps_done_before():
    run = FakeRun()
    run.train(NEVER, last_step=3)
    assert [event[1:] for event in run.events if event[0] == "step"] == [(1, 0.0), (2, 0.1), (3, 0.2)]


def test_loop_saves_before_it_evaluates_and_samples():
    run = FakeRun()
    run.train(replace(NEVER, evaluate_every_steps=2, sample_every_steps=3), last_step=5)
    looks = [(2, "evaluate"), (3, "sample"), (4, "evaluate"), (5, "evaluate")]
    expected = [event for step, look in looks for event in (("save", step), (look, step))]
    assert run.of("save", "evaluate", "sample") == expected


def test_loop_logs_at_intervals_and_at_the_last_step_with_the_seconds_of_training_alone():
    """Saving takes 100 s here and a step 1 s. A report's seconds per step must not contain the saves."""
    run = FakeRun()
    run.train(Intervals(log_every_steps=2, save_every_steps=1), last_step=5)
    assert [event for event in run.events if event[0] == "log"] == [("log", 2, 1.0), ("log", 4, 1.0), ("log", 5, 1.0)]


def test_loop_saves_by_steps_and_by_time():
    run = FakeRun()
    run.train(replace(NEVER, save_every_steps=4), last_step=9)
    assert run.of("save") == [("save", 4), ("save", 8), ("save", 9)]
    run = FakeRun()
    run.train(replace(NEVER, save_every_seconds=3.0), last_step=8)
    assert run.of("save") == [("save", 3), ("save", 6), ("save", 8)]


def test_loop_ends_with_the_data():
    run = FakeRun(batches=4)
    position = run.train(NEVER, last_step=None)
    assert (position.step, position.valid_tokens, position.loss) == (4, 40, 0.25)
    assert run.of("save") == [("save", 4)]


def test_loop_that_is_stopped_finishes_its_step_and_saves_without_evaluating():
    run = FakeRun(stop_at=3)
    with pytest.raises(InterruptedRun, match="after step 3 of 10, saved"):
        run.train(replace(NEVER, evaluate_every_steps=3), last_step=10)
    assert run.of("step", "save", "evaluate") == [("step", 1), ("step", 2), ("step", 3), ("save", 3)]


def test_loop_keeps_the_first_of_two_equally_good_steps():
    position = FakeRun(values={2: 0.5, 4: 0.5}).train(replace(NEVER, evaluate_every_steps=2), last_step=6)
    assert (position.best_step, position.best_value) == (2, 0.5)


def test_resumed_loop_repeats_the_evaluation_after_the_save_and_ends_the_same():
    """A kill may come between a save and its evaluation, so the evaluation is repeated; the save is not."""
    intervals = replace(NEVER, evaluate_every_steps=2)
    values = {2: 0.5, 4: 0.7, 6: 0.6}
    uninterrupted = FakeRun(values=values).train(intervals, last_step=6)
    assert uninterrupted.best_step == 2
    run = FakeRun(values=values, stop_at=4)
    with pytest.raises(InterruptedRun):
        run.train(intervals, last_step=6)
    run.events.clear()
    run.stop_at = None
    assert run.train(intervals, last_step=6, start=run.position) == uninterrupted
    assert run.of("save", "evaluate") == [("evaluate", 4), ("save", 6), ("evaluate", 6)]


def test_loop_resumed_at_its_end_only_evaluates():
    run = FakeRun()
    run.train(replace(NEVER, evaluate_every_steps=4), last_step=3, start=TrainingPosition(step=3))
    assert run.of("step", "save", "evaluate") == [("evaluate", 3)]


NAN, INF = float("nan"), float("inf")


def test_loop_stops_after_three_nonfinite_steps_in_a_row():
    run = FakeRun(losses={5: NAN, 6: INF, 7: NAN})
    with pytest.raises(StageError) as caught:
        run.train(replace(NEVER, save_every_steps=2), last_step=10)
    assert "in steps 5 to 7" in str(caught.value)
    assert "batch of step 7: document 49" in str(caught.value)
    assert "checkpoint of step 6 is kept; lower the learning rate (`sft.lr_scale`)" in str(caught.value)


def test_loop_skips_and_counts_fewer_nonfinite_steps():
    run = FakeRun(losses={2: NAN, 3: NAN, 5: INF, 6: NAN})
    position = run.train(NEVER, last_step=7)
    assert (position.step, position.skipped_steps, position.loss) == (7, 4, pytest.approx(1 / 7))


@pytest.mark.parametrize("is_ahead", [False, True])
@pytest.mark.parametrize("last_step", [2, None], ids=["last step", "end of the data"])
def test_loop_fails_if_it_skipped_each_of_fewer_than_three_steps(last_step, is_ahead):
    run = FakeRun(losses={1: NAN, 2: INF}, batches=2)
    with pytest.raises(StageError, match=r"not finite in steps 1 to 2 \(all of the stage\)\n.*\n  nothing was saved"):
        run.train(NEVER, last_step=last_step, is_ahead=is_ahead)
    assert run.of("save", "evaluate") == []


@pytest.mark.parametrize("is_ahead", [False, True])
@pytest.mark.parametrize("last_step", [4, None], ids=["last step", "end of the data"])
def test_loop_that_skips_its_last_steps_saves_and_evaluates(last_step, is_ahead):
    """The model is that of step 2. Only the validation can judge it, also after a restart at the end."""
    run = FakeRun(losses={3: NAN, 4: INF}, batches=4)
    often = replace(NEVER, evaluate_every_steps=100)
    position = run.train(often, last_step=last_step, is_ahead=is_ahead)
    assert (position.step, position.skipped_steps, position.nonfinite_streak) == (4, 2, 2)
    assert position.loss == pytest.approx(1 / 2)
    assert run.of("save", "evaluate") == [("save", 4), ("evaluate", 4)]
    assert run.train(often, last_step=last_step, start=run.position) == position


def test_loop_resumes_with_the_nonfinite_streak():
    run = FakeRun(losses={5: NAN, 6: NAN, 7: NAN}, stop_at=6)
    with pytest.raises(InterruptedRun):
        run.train(NEVER, last_step=10)
    run.stop_at = None
    with pytest.raises(StageError):
        run.train(NEVER, last_step=10, start=run.position)


@pytest.mark.parametrize(("is_ahead", "stopped_after"), [(False, 4), (True, 5)])
@pytest.mark.parametrize(("stop_at", "other_stops_at"), [(None, 4), (4, 99)])
def test_loop_that_shares_steps_stops_only_by_vote(is_ahead, stopped_after, stop_at, other_stops_at):
    """It stops at the step before which a process voted or, where steps overlap, at the next one.

    A process that stopped by itself would leave the others waiting.
    """
    run = FakeRun(stop_at=stop_at)
    with pytest.raises(InterruptedRun, match=f"stopped after step {stopped_after} of 9"):
        run.train(NEVER, last_step=9, others=lambda step: (step >= other_stops_at, False), is_ahead=is_ahead)
    assert run.of("save") == [("save", stopped_after)]


@pytest.mark.parametrize("is_ahead", [False, True])
def test_loop_that_shares_steps_saves_once_for_each_vote(is_ahead):
    """The other process votes to save from step 3 on, until a save has happened."""
    run = FakeRun()
    intervals = replace(NEVER, save_every_seconds=1e9)
    vote = lambda step: (False, step >= 3 and not run.of("save"))  # noqa: E731
    run.train(intervals, last_step=9, others=vote, is_ahead=is_ahead)
    assert run.of("save") == [("save", 4 if is_ahead else 3), ("save", 9)]


@pytest.mark.parametrize("is_ahead", [False, True])
def test_loop_with_a_time_budget_counts_steps_but_neither_the_first_two_nor_saves_and_evaluations(is_ahead):
    """A step takes 1 s here, a save or an evaluation 100 s."""
    run, budget = FakeRun(), TimeBudget(5.0)
    intervals = Intervals(log_every_steps=6, evaluate_every_steps=3, save_every_steps=2)
    position = run.train(intervals, last_step=None, budget=budget, is_ahead=is_ahead)
    assert position.step == 7
    assert run.rates() == pytest.approx([0, 0, 0, 0.2, 0.4, 0.6, 0.8])
    assert run.of("log") == [("log", 6), ("log", 7)]
    assert budget.used == 5.0


def test_loop_resumed_with_a_time_budget_uses_what_is_left():
    """3 of 5 s are used after 5 steps. The next two steps count 0.6 s each, which is the mean of those before."""
    run = FakeRun(stop_at=5)
    with pytest.raises(InterruptedRun, match="stopped after step 5, saved"):
        run.train(NEVER, last_step=None, budget=TimeBudget(5.0))
    run.events.clear()
    run.stop_at, budget = None, TimeBudget(5.0)
    budget.resume(3.0, steps=5)
    assert run.train(NEVER, last_step=None, budget=budget, start=run.position).step == 8
    assert run.rates() == pytest.approx([0.6, 0.72, 0.84])


def test_loop_resumed_with_a_spent_budget_trains_no_more():
    run, budget = FakeRun(), TimeBudget(5.0)
    budget.resume(5.5, steps=9)
    assert run.train(NEVER, last_step=None, budget=budget, start=TrainingPosition(step=9)).step == 9
    assert run.of("step", "save") == []


@pytest.mark.parametrize(("is_ahead", "steps"), [(False, 6), (True, 7)])
def test_loop_that_shares_steps_acts_on_the_clock_of_the_leading_process(is_ahead, steps):
    """The leading process has used 2 s after each step, this one 1 s. Both must see the same share, and end together.

    The vote is from before a step. Where steps overlap, it is read a step later.
    """
    run, budget = FakeRun(), TimeBudget(10.0, leads=False)
    position = run.train(
        NEVER, last_step=None, budget=budget, others=lambda step: (False, False, 2.0 * (step - 1)), is_ahead=is_ahead
    )
    assert position.step == steps
    late = [0, 0] if is_ahead else [0]
    assert run.rates() == pytest.approx([*late, 0, 0.2, 0.4, 0.6, 0.8][:steps])


@pytest.mark.parametrize(("leads", "expected"), [(True, [0, 0, 0, 1, 2]), (False, [0] * 5)])
def test_loop_votes_with_the_used_time_only_if_its_clock_counts(leads, expected):
    run = FakeRun(batches=5)
    run.train(NEVER, last_step=None, budget=TimeBudget(10.0, leads=leads), others=lambda step: (False, False))
    assert run.voted_seconds == expected
