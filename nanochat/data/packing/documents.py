"""Best-fit packing of documents into rows of fixed length, without padding, and the buffer of items by length.

A row takes the longest document of the buffer that fits, again and again. When none fits, a document is cut to fill the
row. Among equally long documents the one that arrived first is taken.

There are two rules for cutting. `keep` cuts the document that arrived first. Its tail joins the end of the buffer as a
document of its own, so every token ends up in a row. `crop` cuts the shortest document and throws its tail away.
"""

from __future__ import annotations

import bisect
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]
LongDocuments = Literal["keep", "crop"]
"""The use of the tail of a document that is cut to fill a row."""
Item = TypeVar("Item")


class LengthBuffer(Generic[Item]):
    """Items in order of arrival; the longest one that fits and the shortest one are found by a binary search."""

    def __init__(self, length_of: Callable[[Item], int], items: Iterable[Item] = ()) -> None:
        self._length_of = length_of
        self._queues: dict[int, deque[tuple[int, Item]]] = {}
        self._lengths: list[int] = []  # the keys of the queues, sorted
        self._arrivals = 0
        self._count = 0
        for item in items:
            self.add(item)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Item]:
        """Yield the items in order of arrival."""
        waiting = [entry for queue in self._queues.values() for entry in queue]
        return iter([item for _, item in sorted(waiting, key=lambda entry: entry[0])])

    def add(self, item: Item) -> None:
        """Add an item after all others."""
        length = self._length_of(item)
        queue = self._queues.get(length)
        if queue is None:
            queue = self._queues[length] = deque()
            bisect.insort(self._lengths, length)
        queue.append((self._arrivals, item))
        self._arrivals += 1
        self._count += 1

    def take_longest_within(self, limit: int) -> Item | None:
        """Remove and return the longest item of at most `limit`, or None if all are longer."""
        i = bisect.bisect_right(self._lengths, limit)
        return self._take(i - 1) if i else None

    def take_oldest(self) -> Item:
        """Remove and return the item that arrived first."""
        assert self._count, "the buffer is empty"
        return self._take(min(range(len(self._lengths)), key=lambda i: self._queues[self._lengths[i]][0][0]))

    def take_shortest(self) -> Item:
        """Remove and return the shortest item."""
        assert self._count, "the buffer is empty"
        return self._take(0)

    def _take(self, i: int) -> Item:
        length = self._lengths[i]
        queue = self._queues[length]
        _, item = queue.popleft()
        if not queue:
            del self._queues[length]
            del self._lengths[i]
        self._count -= 1
        return item


class BufferedDocument(NamedTuple):
    """A document that waits for its row: its token ids without BOS, and the number of the stream that it came from."""

    ids: IntArray
    stream: int = 0

    @property
    def row_tokens(self) -> int:
        """How many tokens of a row the document takes, with the BOS in front."""
        return len(self.ids) + 1


@dataclass
class DocumentStats:
    """Counts of tokens: placed in rows, thrown away, and placed as the BOS in front of the tail of a cut document."""

    placed_tokens: int = 0
    cropped_tokens: int = 0
    tail_bos_tokens: int = 0

    @property
    def cropped_frac(self) -> float:
        """Fraction of the tokens taken from documents that was thrown away."""
        taken = self.placed_tokens + self.cropped_tokens
        return self.cropped_tokens / taken if taken else 0.0


class DocumentPacker:
    """A buffer of documents, and the rows made from it."""

    def __init__(self, row_tokens: int, buffer_documents: int, *, bos_id: int, long_documents: LongDocuments) -> None:
        """Make rows of `row_tokens` tokens; the buffer is refilled to `buffer_documents` before every placement."""
        assert row_tokens > 1 and buffer_documents > 0, (
            "a row has room for more than BOS, and the buffer holds something"
        )
        self._row_tokens = row_tokens
        self._buffer_documents = buffer_documents
        self._bos_id = bos_id
        self._keeps_tails = long_documents == "keep"
        self.load((), DocumentStats())

    def add(self, document: BufferedDocument) -> None:
        """Add a document to the end of the buffer."""
        self._buffer.add(document)
        self._waiting[document.stream] += 1

    def holds(self, stream: int) -> bool:
        """Return whether a document of a stream, or the tail of one, is in the buffer."""
        return self._waiting[stream] > 0

    def next_row(self, refill: Callable[[], bool]) -> IntArray:
        """Return the next row, (row_tokens,) int32.

        `refill` is called while the buffer is short of documents. It adds documents, or returns False if it has none to
        add at the moment; it must add one if the buffer is empty.
        """
        row = np.empty(self._row_tokens, dtype=np.int32)
        filled = 0
        while filled < self._row_tokens:
            while len(self._buffer) < self._buffer_documents and refill():
                pass
            ids = self._take(self._row_tokens - filled)
            row[filled] = self._bos_id
            row[filled + 1 : filled + 1 + len(ids)] = ids
            filled += 1 + len(ids)
        self.stats.placed_tokens += filled
        return row

    def buffered(self) -> list[BufferedDocument]:
        """Return the documents in the buffer, in order of arrival."""
        return list(self._buffer)

    def load(self, documents: Iterable[BufferedDocument], stats: DocumentStats) -> None:
        """Replace the buffer's documents, and continue to count from `stats`."""
        self._buffer: LengthBuffer[BufferedDocument] = LengthBuffer(lambda document: document.row_tokens, documents)
        self._waiting = Counter(document.stream for document in self._buffer)
        self.stats = stats

    def _take(self, room: int) -> IntArray:
        """Return the next ids for a row with `room` places left, one of them for BOS: a whole document or a part."""
        document = self._buffer.take_longest_within(room)
        if document is not None:
            self._waiting[document.stream] -= 1
            return document.ids
        if self._keeps_tails:
            # In turn, so that a batch has parts of many documents. Cutting the shortest would fill row after row from
            # the same document. Cutting the longest would begin with the text that compresses worst.
            document = self._buffer.take_oldest()
            self._buffer.add(document._replace(ids=document.ids[room - 1 :]))
            self.stats.tail_bos_tokens += 1
        else:
            document = self._buffer.take_shortest()
            self._waiting[document.stream] -= 1
            self.stats.cropped_tokens += document.row_tokens - room
        return document.ids[: room - 1]
