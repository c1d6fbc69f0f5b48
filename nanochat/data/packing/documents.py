"""Best-fit packing of documents into rows of fixed length, without padding.

A row takes the longest document of the buffer that fits, again and again. When none fits, the shortest document is
cropped to fill the row, and its tail is thrown away. Among equally long documents the one that arrived first is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nanochat.data.packing.length_buffer import LengthBuffer

IntArray = npt.NDArray[np.int32]


@dataclass
class DocumentStats:
    """Tokens placed in rows, and tokens thrown away with the tails of cropped documents."""

    placed_tokens: int = 0
    cropped_tokens: int = 0

    @property
    def cropped_frac(self) -> float:
        """Fraction of the tokens taken from documents that was thrown away."""
        taken = self.placed_tokens + self.cropped_tokens
        return self.cropped_tokens / taken if taken else 0.0


class DocumentPacker:
    """A buffer of documents, and the rows made from it."""

    def __init__(self, row_tokens: int, buffer_documents: int) -> None:
        """Make rows of `row_tokens` tokens; the buffer has at least `buffer_documents` before every placement."""
        assert row_tokens > 0 and buffer_documents > 0, "a row and the buffer must hold something"
        self._row_tokens = row_tokens
        self._buffer_documents = buffer_documents
        self._buffer: LengthBuffer[IntArray] = LengthBuffer(len)
        self.stats = DocumentStats()

    def add(self, document: IntArray) -> None:
        """Add a document, with its BOS in front, to the end of the buffer."""
        assert len(document), "a document has at least its BOS"
        self._buffer.add(document)

    def next_row(self, refill: Callable[[], None]) -> IntArray:
        """Return the next row, (row_tokens,) int32; `refill` must `add` documents when the buffer runs low."""
        row = np.empty(self._row_tokens, dtype=np.int32)
        filled = 0
        while filled < self._row_tokens:
            while len(self._buffer) < self._buffer_documents:
                refill()
            document = self._take(self._row_tokens - filled)
            row[filled : filled + len(document)] = document
            filled += len(document)
        self.stats.placed_tokens += filled
        return row

    def buffered(self) -> list[IntArray]:
        """Return the documents in the buffer, in order of arrival."""
        return list(self._buffer)

    def load(self, documents: Sequence[IntArray], stats: DocumentStats) -> None:
        """Replace the buffer's documents, and continue to count from `stats`."""
        self._buffer = LengthBuffer(len, documents)
        self.stats = stats

    def _take(self, room: int) -> IntArray:
        """Return the document to place in `room` tokens, cropped if none fits."""
        document = self._buffer.take_longest_within(room)
        if document is not None:
            return document
        document = self._buffer.take_shortest()
        self.stats.cropped_tokens += len(document) - room
        return document[:room]
