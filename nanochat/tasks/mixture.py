"""Tasks put together and cut: mixtures, sequences, and chosen examples of one task."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from nanochat.tasks.base import Example, Task, check_index

PROBLEM_SHUFFLE_SEED = 1337
"""Of the shuffle that chooses problems to evaluate on: the same for every recipe and model."""


@dataclass(frozen=True)
class TaskSubset:
    """Some examples of a task, in the order given."""

    task: Task
    indices: Sequence[int]

    @property
    def name(self) -> str:
        """Name of the task."""
        return self.task.name

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self.task[self.indices[check_index(index, len(self))]]

    def grade(self, example: Example, completion: str) -> bool:
        """Return the task's verdict."""
        return self.task.grade(example, completion)


def take_slice(task: Task, start: int = 0, stop: int | None = None, step: int = 1) -> TaskSubset:
    """Return examples start, start + step, ... before `stop`; bounds as in Python's slices."""
    return TaskSubset(task, range(len(task))[start:stop:step])


def take_shuffled(task: Task, count: int, *, seed: int) -> TaskSubset:
    """Return `count` examples, or all, drawn from `seed` without repetition; a larger count adds to a smaller one's."""
    order = list(range(len(task)))
    random.Random(seed).shuffle(order)
    return TaskSubset(task, order[:count])


@dataclass(frozen=True)
class TaskSequence:
    """Examples of several tasks, one task after the other."""

    tasks: Sequence[Task]

    def __len__(self) -> int:
        return sum(map(len, self.tasks))

    def __getitem__(self, index: int) -> Example:
        task, own_index = self.locate(index)
        return task[own_index]

    def locate(self, index: int) -> tuple[Task, int]:
        """Return the task that example `index` comes from, and its index there."""
        check_index(index, len(self))
        for task in self.tasks:
            if index < len(task):
                return task, index
            index -= len(task)
        raise AssertionError("check_index lets no other index through")


@dataclass(frozen=True)
class TaskMixture:
    """So many examples of each of several tasks, task by task: whole passes over a task, then some of it.

    Those of a pass that is not whole are drawn from `seed`. The order in which a model sees them is the loader's.
    """

    tasks: Sequence[tuple[Task, int]]
    """Tasks, and how many examples of each are in the mixture."""
    seed: int

    @cached_property
    def _sequence(self) -> TaskSequence:
        parts: list[Task] = []
        for task, count in self.tasks:
            whole, rest = divmod(count, len(task)) if len(task) else (0, 0)
            parts += [task] * whole
            if rest:
                parts.append(take_shuffled(task, rest, seed=self.seed))
        return TaskSequence(parts)

    def __len__(self) -> int:
        return len(self._sequence)

    def __getitem__(self, index: int) -> Example:
        return self._sequence[index]


def mixture_counts(available: Sequence[int], weights: Sequence[float | None]) -> tuple[int, ...]:
    """Return how many examples of each task are in a mixture.

    Without weights, all that are `available`. With them, shares of the whole are as the weights, and the whole is as
    large as `available` lets it be: the task that is shortest of its share gives all it has, each other one at least 1.
    """
    assert len(available) == len(weights), "one weight a task"
    given = [weight for weight in weights if weight is not None]
    if not given:
        return tuple(available)
    assert len(given) == len(weights), "all tasks have a weight, or none has"
    whole = min(count / weight for count, weight in zip(available, given, strict=True))
    return tuple(min(count, max(1, round(whole * weight))) for count, weight in zip(available, given, strict=True))
