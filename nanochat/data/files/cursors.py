"""Positions in a data file and in the documents of a source, from which reading resumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nanochat.errors import PreflightError

Cursor = tuple[int, ...]
"""`(row group, rows into it, bad rows)` in a parquet file; `(byte, line, bad rows)` in other files.

The byte counts in the decompressed content of a compressed file, and in the extracted text of an html file.

The last number counts the rows of the source, from its first file on, that were skipped because they cannot be read.
"""

START: Cursor = (0, 0, 0)


def next_file(cursor: Cursor) -> Cursor:
    """Return the beginning of the file after the one that ends at `cursor`."""
    return (0, 0, *cursor[2:])


@dataclass(frozen=True)
class DocumentPosition:
    """The position of a stream after a document.

    Attributes:
        epoch: how many times the source had been read to its end before.
        part: the number of the file; 0 for a built-in source.
        cursor: the text in that file to continue with.
        piece: the document of that text to continue with, if the text was split into several.
    """

    epoch: int = 0
    part: int = 0
    cursor: Cursor = START
    piece: int = 0

    @classmethod
    def from_json(cls, value: Mapping[str, object] | None) -> DocumentPosition:
        """Return the position that `to_json` wrote; None is the beginning.

        Raises:
            PreflightError: the value is something else.
        """
        if value is None:
            return cls()
        epoch, part, cursor, piece = (value.get(key) for key in ("epoch", "part", "cursor", "piece"))
        if isinstance(epoch, int) and isinstance(part, int) and isinstance(cursor, list) and isinstance(piece, int):
            return cls(epoch, part, tuple(int(number) for number in cursor), piece)
        raise PreflightError(
            f"the checkpoint's data position {value} is not one in documents; start the stage over with `--force`"
        )

    def to_json(self) -> dict[str, object]:
        """Return the position as a checkpoint keeps it."""
        return {"epoch": self.epoch, "part": self.part, "cursor": list(self.cursor), "piece": self.piece}

    @property
    def place(self) -> tuple[object, ...]:
        """The position without its epoch and its count of bad rows. It grows with every document of an epoch."""
        return (self.part, self.cursor[:2], self.piece)
