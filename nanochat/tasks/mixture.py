"""Chooses examples: parts of a task, problems to evaluate on, solved examples, and mixtures of several tasks."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TypeVar

from nanochat.tasks.task import Example, Task, check_index

PROBLEM_SHUFFLE_SEED = 1337
"""Seed of the shuffle that chooses problems to evaluate on. It is the same for every recipe and model."""

FEWSHOT_SEED = 1234
"""Begins the seeds with which solved examples are drawn."""
T = TypeVar("T")


@dataclass(frozen=True)
class TaskSubset:
    """Some examples of a task, in the order of `indices`."""

    task: Task
    indices: Sequence[int]

    @property
    def name(self) -> str:
        return self.task.name

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self.task[self.indices[check_index(index, len(self))]]

    def grade(self, example: Example, completion: str) -> float:
        """Return the task's grade."""
        return self.task.grade(example, completion)


def take_slice(task: Task, start: int | None = None, stop: int | None = None) -> TaskSubset:
    """Return the examples from `start` to before `stop`, which may be negative as in Python's slices."""
    return TaskSubset(task, range(len(task))[start:stop])


def choose_problems(total: int, max_problems: int | None) -> list[int]:
    """Return the indices of all problems in order, or of `max_problems` of them, chosen by a fixed shuffle."""
    order = list(range(total))
    if max_problems is not None:
        random.Random(PROBLEM_SHUFFLE_SEED).shuffle(order)
    return order[:max_problems]


def draw_solved_examples(pool: Sequence[T], count: int, *, number: int) -> list[T]:
    """Return the solved examples that precede problem `number`, drawn from a pool without that problem."""
    return random.Random(FEWSHOT_SEED + number).sample(pool, count)


def take_shuffled(task: Task, count: int, *, seed: int) -> TaskSubset:
    """Return the first `count` examples, or all, of an order shuffled with `seed`. A larger `count` only appends."""
    order = list(range(len(task)))
    random.Random(seed).shuffle(order)
    return TaskSubset(task, order[:count])


@dataclass(frozen=True)
class TaskMixture:
    """A given number of examples of each of several tasks: whole passes over a task, then a part of it.

    The examples of a partial pass are drawn with `seed`. The examples are in the order of the tasks; the loader decides
    the order in which a model sees them.
    """

    tasks: Sequence[tuple[Task, int]]
    """Each task with the number of its examples in the mixture."""
    seed: int

    @cached_property
    def _passes(self) -> list[Task]:
        passes: list[Task] = []
        for task, count in self.tasks:
            whole, rest = divmod(count, len(task)) if len(task) else (0, 0)
            passes += [task] * whole
            if rest:
                passes.append(take_shuffled(task, rest, seed=self.seed))
        return passes

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(map(len, self._passes)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Example:
        task, place = self.locate(index)
        return task[place]

    def locate(self, index: int) -> tuple[Task, int]:
        """Return the task of an example of the mixture, and the example's index in it."""
        number = bisect_right(self._ends, check_index(index, len(self)))
        return self._passes[number], index - self._ends[number] + len(self._passes[number])
