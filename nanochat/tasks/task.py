"""The interface of all tasks: examples to train on, and a rule that grades completions. No model calls, no files.

`grade_completions` is what evaluations and rewards call. It turns what a task's rule returns into a `Grade`, and grades
several completions at a time, because some rules run a program for each of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from nanochat.errors import NanochatError, StageError
from nanochat.tokenizer.chat_format import Conversation, Message, Part

_MAX_WORKERS = 16
"""Completions that are graded at a time. Each may have a sandbox with two processes."""


class GradingError(NanochatError):
    """A task's rule failed on a completion, such as a grading program that took too long. The completion scores 0."""

    exit_code = 4


@dataclass(frozen=True)
class Grade:
    """How well a completion answers its example."""

    score: float
    """From 0, wrong, to 1, right."""
    problem: str = ""
    """Why the rule could not grade the completion. The score is then 0."""

    def __post_init__(self) -> None:
        assert 0.0 <= self.score <= 1.0, f"a score of {self.score}; it must be from 0 to 1"

    @property
    def is_right(self) -> bool:
        return self.score == 1.0


@dataclass(frozen=True)
class Example:
    """One problem with its right answer."""

    conversation: Conversation
    """Ends with the assistant's gold answer."""
    letters: tuple[str, ...] | None = None
    """The labels to choose from; None for tasks that are not categorical."""
    meta: Mapping[str, str] = field(default_factory=dict)
    """Texts that grading and records need beyond the conversation."""


class Task(Protocol):
    """A sequence of examples, and the rule by which their completions are graded.

    Equal arguments give equal examples. `nanochat.tasks.table` has the facts about the task, by its name.
    """

    @property
    def name(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def grade(self, example: Example, completion: str) -> float:
        """Return how well a decoded completion, with or without special tokens, answers the example.

        The result is from 0 to 1, or a truth value. Raises GradingError if the task cannot grade this completion, and
        another error if it can grade none.
        """
        ...


def grade_completions(
    task: Task, answers: Sequence[tuple[Example, str]], *, on_graded: Callable[[int], None] | None = None
) -> list[Grade]:
    """Return the grade of each completion. A completion that the task cannot grade scores 0, with the reason.

    `on_graded` is called with the number of grades so far. If it raises an exception, no further completion is graded.
    """
    grades = []
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_WORKERS)) as pool:
        pending = [pool.submit(_grade, task, *answer) for answer in answers]
        try:
            for grade in pending:
                grades.append(grade.result())
                if on_graded is not None:
                    on_graded(len(grades))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return grades


def _grade(task: Task, example: Example, completion: str) -> Grade:
    try:
        score = float(task.grade(example, completion))
    except GradingError as error:
        return Grade(0.0, str(error))
    if not 0.0 <= score <= 1.0:
        raise StageError(f"{task.name} grades the answer {completion[:200]!r} with {score}; grades are from 0 to 1")
    return Grade(score)


def single_turn(user: str, assistant: str | tuple[Part, ...]) -> Conversation:
    """Return the conversation of one question and one answer."""
    return Conversation((Message("user", user), Message("assistant", assistant)))


def gold_text(example: Example) -> str:
    """Return the text of the gold answer, its parts joined (calls and their output included)."""
    return example.conversation.messages[-1].text()


def check_index(index: int, length: int) -> int:
    """Return `index` if it is within [0, length), else raise IndexError, which also ends a plain `for` over a task."""
    if not 0 <= index < length:
        raise IndexError(f"example {index} of {length}")
    return index
