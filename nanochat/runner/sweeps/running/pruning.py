"""Stops trials of a search that are clearly worse than the earlier ones, by their training loss.

A trial is judged after fixed shares of the steps of each stage that trains, by `optuna`. The trials that it is compared
with do not depend on the time, so a search that was killed prunes the same trials again. A stage that trains for a wall
time or for a number of epochs is not judged.
"""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from nanochat.plan.specs.job import Job
from nanochat.plan.specs.training import PretrainSpec, SftSpec
from nanochat.plan.stages import training_stages
from nanochat.runner.process.interrupts import Interrupts
from nanochat.runner.sweeps.results.cell_results import CellResult, Setting
from nanochat.storage.files import read_file
from nanochat.storage.layout import StageFolder
from nanochat.storage.series import TRAIN_LOSS
from nanochat.tracking.points import read_points

_MILESTONES = (0.25, 0.5, 0.75)
"""A trial is judged after each of these shares of a stage's steps."""
MIN_TRIALS = 4
"""No trial is stopped before this number of trials have finished."""
_AVERAGED_FRAC = 0.1
"""The loss at a milestone is the mean over this share of the steps, those before it."""
_POLL_SECONDS = 0.2

Losses = dict[int, float]
"""The training loss at each milestone, which are counted from 1 over all stages that train."""


def losses_of(result: CellResult, base: Path) -> Losses:
    """Return the losses at the milestones that a cell has reached."""
    folders = result.run.state.folders(base) if result.run is not None else {}
    losses: Losses = {}
    for place, stage in enumerate(training_stages()):
        if (folder := folders.get(stage)) is not None and (steps := _steps(folder)):
            losses |= {place * len(_MILESTONES) + number: loss for number, loss in _losses_in(folder, steps)}
    return losses


def _losses_in(folder: StageFolder, steps: int) -> Iterator[tuple[int, float]]:
    """Yield the number and the loss of each milestone that a stage has reached."""
    points = [(point.step, point.value) for point in read_points(folder.metrics) if point.name == TRAIN_LOSS]
    for number, share in enumerate(_MILESTONES, start=1):
        near = [loss for step, loss in points if (share - _AVERAGED_FRAC) * steps < step <= share * steps]
        if near and points[-1][0] >= share * steps:
            yield number, statistics.fmean(near)


def _steps(folder: StageFolder) -> int | None:
    """Return how many steps a stage trains for, None if that is not known."""
    try:
        spec = Job.model_validate_json(read_file(folder.job)).spec
    except (OSError, ValidationError):
        return None
    match spec:
        case PretrainSpec():
            return spec.steps
        case SftSpec():
            return spec.last_step
        case _:
            return None


def comparable(tried: Iterable[Setting], base: Path) -> list[Losses]:
    """Return the losses of the cells that others are compared with: those of settings that have finished."""
    finished = [setting for setting in tried if all(cell.status == "finished" for cell in setting.cells)]
    return [losses_of(cell, base) for setting in finished for cell in setting.cells]


def is_worse(losses: Mapping[int, float], earlier: Iterable[Mapping[int, float]]) -> bool:
    """Return whether a trial is to be stopped: at some milestone, its loss is above the median of earlier trials."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=MIN_TRIALS, n_min_trials=MIN_TRIALS)
    study = optuna.create_study(direction="minimize", pruner=pruner)
    for others in filter(None, earlier):
        study.add_trial(optuna.trial.create_trial(value=others[max(others)], intermediate_values=dict(others)))
    trial = study.ask()
    for number, loss in sorted(losses.items()):
        trial.report(loss, number)
        if trial.should_prune():
            return True
    return False


class Watch:
    """The request to stop one trial. `interrupts` counts the signals to the whole sweep, and one if it is worse."""

    def __init__(self) -> None:
        self.interrupts = Interrupts()
        self.was_stopped = False
        """Whether the trial was asked to stop because it is worse."""


@contextmanager
def watching(interrupts: Interrupts, losses: Callable[[], Losses], earlier: Iterable[Losses]) -> Iterator[Watch]:
    """Watch a trial while the block runs it with the interrupts of the `Watch`, and stop it if it is worse."""
    watch, ended, others = Watch(), threading.Event(), list(earlier)

    def follow() -> None:
        judged = 0
        while not ended.wait(_POLL_SECONDS):
            if not interrupts.count and len(reached := losses()) > judged:
                judged = len(reached)
                watch.was_stopped |= is_worse(reached, others)
            watch.interrupts.count = max(interrupts.count, int(watch.was_stopped))

    thread = threading.Thread(target=follow, name="watch a trial", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        ended.set()
        thread.join()
