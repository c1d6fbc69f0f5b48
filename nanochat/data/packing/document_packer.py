"""Best-fit packing of documents into rows of fixed length, without padding.

A row takes the longest document of the buffer that fits, again and again. When none fits, a document is cut to fill the
row. Among equally long documents the one that arrived first is taken.

There are two rules for cutting. `keep` cuts the document that arrived first. Its tail joins the end of the buffer as a
document of its own, so every token ends up in a row. `crop` cuts the shortest document and throws its tail away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from nanochat.data.packing.length_buffer import LengthBuffer

IntArray = npt.NDArray[np.int32]
LongDocuments = Literal["keep", "crop"]
"""The use of the tail of a document that is cut to fill a row."""


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
