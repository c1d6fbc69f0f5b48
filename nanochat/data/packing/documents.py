"""Best-fit packing: documents into rows of fixed length, without padding.

A row is filled with the longest document of a buffer that fits, again and again; when none fits, the shortest is cut to
fill the row, and its tail is thrown away. Ties go to the document that has waited longest. Documents wait in queues by
length, so that a placement costs a binary search over the lengths, whatever the size of the buffer.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]
Item = TypeVar("Item")


class LengthBuffer(Generic[Item]):
    """Items with lengths, in order of arrival; the longest that fits and the shortest are found at once."""

    def __init__(self) -> None:
        self._queues: dict[int, deque[tuple[int, Item]]] = {}
        self._lengths: list[int] = []  # sorted, each once, of the queues that are not empty
        self._arrivals = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, length: int, item: Item) -> None:
        """Put an item behind the others."""
        queue = self._queues.get(length)
        if queue is None:
            queue = self._queues[length] = deque()
            bisect.insort(self._lengths, length)
        queue.append((self._arrivals, item))
        self._arrivals += 1
        self._count += 1

    def take_longest_within(self, limit: int) -> Item | None:
        """Take out the longest item of at most `limit`, None where there is none; the first to arrive among equals."""
        i = bisect.bisect_right(self._lengths, limit)
        return self._take(i - 1) if i else None

    def take_shortest(self) -> Item:
        """Take out the shortest item, the first to arrive among equals."""
        assert self._count, "nothing to take"
        return self._take(0)

    def in_order(self) -> list[Item]:
        """Return the items in order of arrival."""
        waiting = [entry for queue in self._queues.values() for entry in queue]
        return [item for _, item in sorted(waiting, key=lambda entry: entry[0])]

    def _take(self, i: int) -> Item:
        length = self._lengths[i]
        queue = self._queues[length]
        _, item = queue.popleft()
        if not queue:
            del self._queues[length]
            del self._lengths[i]
        self._count -= 1
        return item


@dataclass
class PackingStats:
    """Tokens that went into rows, and tokens thrown away with the tails of cut documents."""

    placed_tokens: int = 0
    cropped_tokens: int = 0

    @property
    def cropped_frac(self) -> float:
        """Share of the tokens taken from documents that was thrown away."""
        taken = self.placed_tokens + self.cropped_tokens
        return self.cropped_tokens / taken if taken else 0.0


class BestFitPacker:
    """The buffer of documents, and rows made from it."""

    def __init__(self, row_tokens: int, buffer_size: int) -> None:
        """Make rows of `row_tokens` tokens from a buffer that is kept at `buffer_size` documents or more."""
        assert row_tokens > 0 and buffer_size > 0, "a row and a buffer have room for something"
        self._row_tokens = row_tokens
        self._buffer_size = buffer_size
        self._buffer: LengthBuffer[IntArray] = LengthBuffer()
        self.stats = PackingStats()

    def add(self, document: IntArray) -> None:
        """Put a document (its BOS in front) at the end of the buffer."""
        assert len(document), "a document has tokens"
        self._buffer.add(len(document), document)

    def next_row(self, refill: Callable[[], None]) -> IntArray:
        """Return the next row, (row_tokens,) int32; `refill` must `add` documents, and is called while they are few."""
        row = np.empty(self._row_tokens, dtype=np.int32)
        filled = 0
        while filled < self._row_tokens:
            while len(self._buffer) < self._buffer_size:
                refill()
            left = self._row_tokens - filled
            document = self._buffer.take_longest_within(left)
            if document is None:
                document = self._buffer.take_shortest()
                self.stats.cropped_tokens += len(document) - left
                document = document[:left]
            row[filled : filled + len(document)] = document
            filled += len(document)
        self.stats.placed_tokens += filled
        return row

    def documents(self) -> list[IntArray]:
        """Return the documents in the buffer, in order."""
        return self._buffer.in_order()

    def load(self, documents: Sequence[IntArray], stats: PackingStats) -> None:
        """Replace the buffer by `documents` and go on counting from `stats`."""
        self._buffer = LengthBuffer()
        for document in documents:
            self.add(document)
        self.stats = stats
