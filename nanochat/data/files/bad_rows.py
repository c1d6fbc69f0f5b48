"""How many rows of a source may be unusable, and how they are reported. Documents and chats have the same limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

MIN_ALLOWED = 10
"""This many bad rows are always allowed."""
SHOWN = 3
"""Bad rows that a message shows."""


@dataclass
class RowProblems:
    """What reading found wrong with rows.

    Attributes:
        bad: the number of rows that could not be read.
        examples: the first of them, as `file:line: problem`.
        empty: the number of rows without text: null, empty or blank.
    """

    bad: int = 0
    examples: list[str] = field(default_factory=list)
    empty: int = 0

    def add_bad(self, problem: str) -> None:
        """Count a bad row."""
        self.bad += 1
        if len(self.examples) < SHOWN:
            self.examples.append(problem)

    def notes(self) -> list[str]:
        """Return what to tell the user, nothing if all rows were usable."""
        notes = []
        if self.bad:
            notes.append(f"{self.bad:,} bad row{'s' if self.bad > 1 else ''} left out:{shown(self.examples)}")
        if self.empty:
            notes.append(f"{self.empty:,} row{'s' if self.empty > 1 else ''} without text left out")
        return notes


def allowed_bad_rows(max_frac: float, rows: int) -> int:
    """Return how many of `rows` rows may be bad."""
    return max(MIN_ALLOWED, int(max_frac * rows))


def shown(problems: Sequence[str]) -> str:
    """Return the first problems, separated by semicolons, after a space."""
    rest = len(problems) - SHOWN
    return " " + "; ".join(problems[:SHOWN]) + (f"; and {rest:,} more" if rest > 0 else "")
