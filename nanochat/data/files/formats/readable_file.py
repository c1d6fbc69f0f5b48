"""A file to open, with the path by which messages name it, and a row of a file with its place.

Messages name the user's file. It is the file to open, or the one from which a part of a converted copy was made.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PLACE_COLUMN, PROBLEM_COLUMN = "\ufdd0place", "\ufdd0problem"
"""Columns of a copy: the place of each row in the user's file, such as `:7`, and why it has no values (null if it has).

Their first character is a noncharacter, which Unicode reserves for the internal use of a program.
"""


@dataclass(frozen=True)
class ReadableFile:
    """A file to open: the user's own, or a part of the converted copy of `origin`."""

    path: Path
    origin: Path | None = None

    @property
    def name(self) -> Path:
        """The path that the user knows."""
        return self.origin or self.path

    @property
    def is_copy(self) -> bool:
        """Whether the file is a part of a converted copy, which has the columns above."""
        return self.origin is not None


@dataclass(frozen=True)
class FileRow:
    """A row of a file: its value, or `problem`, which says why it has none. `where` is its file and line or number."""

    where: str
    value: object
    problem: str | None = None
