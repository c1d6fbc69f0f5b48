"""The loop's order of things: when it logs, saves, evaluates, stops, and how it goes on from a saved position."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import pytest

from nanochat.errors import InterruptedRun, StageError
from nanochat.train.loop import Intervals, LoopCallbacks, TrainingPosition, train
from nanochat.train.step import Rates, StepResult


class FakeStep:
    """Losses from a list: step k (from 1) has `losses[k]`, else 1 / k; each takes a second of the world's clock.

    With `others`, what a second process votes before each step, the step is shared; `is_ahead` as on a GPU.
    """

    def __init__(self, world, losses, others=None, is_ahead=False):
        self.world, self.losses, self.others, self.is_ahead = world, losses, others, is_ahead

    def run(self, batch, *, rates, votes=tuple):
        self.world.now += 1
        self.world.events.append(("step", batch, rates.lr_multiplier))
        loss = self.losses.get(batch, 1 / batch)
        applied = loss == loss and abs(loss) != float("inf")
        voted = None
        if self.others is not None:
            voted = mx.array([float(a) + float(b) for a, b in zip(votes(), self.others(batch), strict=True)])
        is_applied = mx.array(applied) if self.is_ahead else applied
        return StepResult(mx.array(loss), mx.array(2.0), valid_tokens=10, is_applied=is_applied, votes=voted)


class World:
    """Records what the loop does; `position` is what a checkpoint would restore."""

    def __init__(self, batches=100, losses=None, values=None, stop_at=None):
        self.events, self.now, self.position, self.batch = [], 0.0, None, 0
        self.batches, self.losses, self.values, self.stop_at = batches, losses or {}, values or {}, stop_at

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

    def train(self, intervals, *, last_step, start=None, **shared):
        self.batch = 0 if start is None else start.step
        callbacks = LoopCallbacks(
            next_batch=self.next_batch,
            describe_batch=lambda: f"document {self.batch * 7}",
            rates=lambda done: Rates(lr_multiplier=done / 10, momentum=0.9, weight_decay=0.0),
            log=lambda report: self.events.append(("log", report.position.step, report.seconds)),
            save=self.save,
            evaluate=self.evaluate,
            sample=lambda position: self.events.append(("sample", position.step)),
            should_stop=lambda: self.batch == self.stop_at,
            clock=lambda: self.now,
        )
        return train(FakeStep(self, self.losses, **shared), callbacks, intervals, last_step=last_step, start=start)

    def of(self, *kinds):
        return [event[:2] for event in self.events if event[0] in kinds]


NEVER = Intervals(log_every_steps=1000)


def test_rates_are_those_of_the_steps_done_before():
    world = World()
    world.train(NEVER, last_step=3)
    assert [event for event in world.events if event[0] == "step"] == [
        ("step", 1, 0.0),
        ("step", 2, 0.1),
        ("step", 3, 0.2),
    ]


def test_saving_comes_before_evaluating_and_sampling():
    world = World()
    world.train(replace(NEVER, evaluate_every_steps=2, sample_every_steps=3), last_step=5)
    looks = [(2, "evaluate"), (3, "sample"), (4, "evaluate"), (5, "evaluate")]
    expected = [event for step, look in looks for event in (("save", step), (look, step))]
    assert world.of("save", "evaluate", "sample") == expected


def test_logs_come_at_their_cadence_and_at_the_last_step_with_seconds_of_training_alone():
    """Saving takes 100 s here and a step 1 s: a report's seconds per step must not contain the saves."""
    world = World()
    world.train(Intervals(log_every_steps=2, save_every_steps=1), last_step=5)
    assert [event for event in world.events if event[0] == "log"] == [("log", 2, 1.0), ("log", 4, 1.0), ("log", 5, 1.0)]


def test_saves_by_steps_and_by_time():
    world = World()
    world.train(replace(NEVER, save_every_steps=4), last_step=9)
    assert world.of("save") == [("save", 4), ("save", 8), ("save", 9)]
    world = World()
    world.train(replace(NEVER, save_every_seconds=3.0), last_step=8)
    assert world.of("save") == [("save", 3), ("save", 6), ("save", 8)]


def test_training_ends_with_the_data():
    world = World(batches=4)
    position = world.train(NEVER, last_step=None)
    assert (position.step, position.valid_tokens, position.loss) == (4, 40, 0.25)
    assert world.of("save") == [("save", 4)]


def test_stopping_finishes_the_step_and_saves_it_without_evaluating():
    world = World(stop_at=3)
    with pytest.raises(InterruptedRun, match="after step 3 of 10, saved"):
        world.train(replace(NEVER, evaluate_every_steps=3), last_step=10)
    assert world.of("step", "save", "evaluate") == [("step", 1), ("step", 2), ("step", 3), ("save", 3)]


def test_a_resumed_loop_repeats_what_was_due_after_the_save_and_ends_the_same():
    """The kill may have come between save and evaluation, so that evaluation is done again; the save is not."""
    intervals = replace(NEVER, evaluate_every_steps=2)
    values = {2: 0.5, 4: 0.7, 6: 0.6}
    undisturbed = World(values=values).train(intervals, last_step=6)
    assert undisturbed.best_step == 2
    world = World(values=values, stop_at=4)
    with pytest.raises(InterruptedRun):
        world.train(intervals, last_step=6)
    world.events.clear()
    world.stop_at = None
    assert world.train(intervals, last_step=6, start=world.position) == undisturbed
    assert world.of("save", "evaluate") == [("evaluate", 4), ("save", 6), ("evaluate", 6)]


def test_a_loop_resumed_at_its_end_only_evaluates():
    world = World()
    world.train(replace(NEVER, evaluate_every_steps=4), last_step=3, start=TrainingPosition(step=3))
    assert world.of("step", "save", "evaluate") == [("evaluate", 3)]


NAN, INF = float("nan"), float("inf")


def test_three_steps_in_a_row_that_are_not_finite_stop_the_stage():
    world = World(losses={5: NAN, 6: INF, 7: NAN})
    with pytest.raises(StageError) as caught:
        world.train(replace(NEVER, save_every_steps=2), last_step=10)
    assert "in steps 5 to 7" in str(caught.value)
    assert "batch of step 7: document 49" in str(caught.value)
    assert "checkpoint of step 6 is kept" in str(caught.value)


def test_fewer_are_skipped_and_counted():
    world = World(losses={2: NAN, 3: NAN, 5: INF, 6: NAN})
    position = world.train(NEVER, last_step=7)
    assert (position.step, position.skipped_steps, position.loss) == (7, 4, pytest.approx(1 / 7))


def test_the_streak_survives_a_restart():
    world = World(losses={5: NAN, 6: NAN, 7: NAN}, stop_at=6)
    with pytest.raises(InterruptedRun):
        world.train(NEVER, last_step=10)
    world.stop_at = None
    with pytest.raises(StageError):
        world.train(NEVER, last_step=10, start=world.position)


@pytest.mark.parametrize(("is_ahead", "stopped_after"), [(False, 4), (True, 5)])
def test_a_stop_that_another_process_votes_for_stops_this_one(is_ahead, stopped_after):
    """At the step that the vote was cast before; where steps overlap, at the one after it."""
    world = World()
    with pytest.raises(InterruptedRun, match=f"stopped after step {stopped_after} of 9"):
        world.train(NEVER, last_step=9, others=lambda step: (step >= 4, False), is_ahead=is_ahead)
    assert world.of("save") == [("save", stopped_after)]


@pytest.mark.parametrize(("is_ahead", "stopped_after"), [(False, 4), (True, 5)])
def test_its_own_wish_to_stop_waits_for_the_vote(is_ahead, stopped_after):
    """A process that stopped by itself would leave the others waiting: it votes before step 4."""
    world = World(stop_at=4)
    with pytest.raises(InterruptedRun, match=f"stopped after step {stopped_after} of 9"):
        world.train(NEVER, last_step=9, others=lambda step: (False, False), is_ahead=is_ahead)


@pytest.mark.parametrize("is_ahead", [False, True])
def test_shared_steps_are_saved_once_for_each_vote(is_ahead):
    """The other process's clock strikes before step 3, and goes on striking until the save is done."""
    world = World()
    intervals = Intervals(log_every_steps=1000, save_every_seconds=1e9)
    struck = lambda step: (False, step >= 3 and not world.of("save"))  # noqa: E731
    world.train(intervals, last_step=9, others=struck, is_ahead=is_ahead)
    assert world.of("save") == [("save", 4 if is_ahead else 3), ("save", 9)]
