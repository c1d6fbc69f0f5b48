"""The interface of all tasks: examples to train on, and a rule that grades completions. No model calls, no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from nanochat.tokenizer.chat_format import Conversation, Message, Part


@dataclass(frozen=True)
class Example:
    """One problem with its right answer."""

    conversation: Conversation
    """Ends with the assistant's gold answer."""
    letters: tuple[str, ...] | None = None
    """The labels to choose from; None for tasks that are not categorical."""
    meta: Mapping[str, str] = field(default_factory=dict)
    """What grading and records need beyond the conversation."""


class Task(Protocol):
    """A sequence of examples, and the rule by which their completions are graded.

    Equal arguments give equal examples. `nanochat.tasks.table` has the facts about the task, by its name.
    """

    @property
    def name(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def grade(self, example: Example, completion: str) -> bool:
        """Return whether a decoded completion, with or without special tokens, answers the example."""
        ...


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
