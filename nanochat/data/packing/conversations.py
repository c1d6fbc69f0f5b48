"""Packing of conversations into rows: best fit, never cropped, padded where none fits.

A conversation longer than a row is cut behind the last turn of the assistant that fits, or dropped where not even the
first exchange does; one that supervises nothing is dropped as well. Both are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nanochat.data.packing.documents import LengthBuffer

IntArray = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Packed:
    """A conversation ready to be placed: ids and loss mask, both (length,) int32, and its number."""

    ids: IntArray
    mask: IntArray
    number: int


@dataclass
class SftStats:
    """What has become of the conversations up to a batch, and of the places in its rows."""

    placed_conversations: int = 0
    cut_conversations: int = 0
    dropped_conversations: int = 0
    placed_tokens: int = 0
    supervised_tokens: int = 0
    padding_tokens: int = 0

    @property
    def padding_frac(self) -> float:
        """Share of the places in rows that hold padding."""
        places = self.placed_tokens + self.padding_tokens
        return self.padding_tokens / places if places else 0.0


def fit(
    ids: Sequence[int], mask: Sequence[int], *, number: int, row_tokens: int, turn_end_id: int | None
) -> tuple[Packed | None, bool]:
    """Return a conversation that fits a row and supervises something, or None; and whether it was cut.

    `turn_end_id` ends an assistant's turn; without it nothing is cut, and what is too long is dropped.
    """
    all_ids, all_mask = np.asarray(ids, dtype=np.int32), np.asarray(mask, dtype=np.int32)
    assert len(all_ids) == len(all_mask), "one mask value an id"
    length = len(all_ids)
    if length > row_tokens:
        ends = np.flatnonzero((all_ids[:row_tokens] == turn_end_id) & (all_mask[:row_tokens] == 1))
        length = int(ends[-1]) + 1 if len(ends) else 0
    if not all_mask[1:length].any():
        return None, False
    return Packed(all_ids[:length], all_mask[:length], number), length < len(all_ids)


class ConversationPacker:
    """The buffer of conversations, and rows made from it."""

    def __init__(self, row_tokens: int, buffer_size: int, pad_id: int) -> None:
        """Make rows of `row_tokens` tokens from a buffer that is kept at `buffer_size` while there are more."""
        self._row_tokens = row_tokens
        self._buffer_size = buffer_size
        self._pad_id = pad_id
        self._buffer: LengthBuffer[Packed] = LengthBuffer()
        self.stats = SftStats()

    def add(self, conversation: Packed) -> None:
        """Put a conversation that fits a row at the end of the buffer."""
        assert len(conversation.ids) <= self._row_tokens, "a conversation fits a row"
        self._buffer.add(len(conversation.ids), conversation)

    def next_row(self, refill: Callable[[], Packed | None]) -> tuple[IntArray, IntArray] | None:
        """Return the next row as (ids, targets), both (row_tokens - 1,) int32; None when nothing is left.

        Targets are -1 where nothing is supervised. `refill` gives the next conversation, None when there is none.
        """
        ids = np.full(self._row_tokens, self._pad_id, dtype=np.int32)
        mask = np.zeros(self._row_tokens, dtype=np.int32)
        filled = 0
        while filled < self._row_tokens:
            while len(self._buffer) < self._buffer_size and (more := refill()) is not None:
                self.add(more)
            chosen = self._buffer.take_longest_within(self._row_tokens - filled)
            if chosen is None:
                break
            end = filled + len(chosen.ids)
            ids[filled:end], mask[filled:end] = chosen.ids, chosen.mask
            filled = end
            self.stats.placed_conversations += 1
        if filled == 0:
            return None
        self.stats.placed_tokens += filled
        self.stats.padding_tokens += self._row_tokens - filled
        self.stats.supervised_tokens += int(mask.sum())
        return ids[:-1], np.where(mask[1:] == 1, ids[1:], -1).astype(np.int32)

    def waiting(self) -> list[int]:
        """Return the numbers of the conversations in the buffer, in order."""
        return [conversation.number for conversation in self._buffer.in_order()]

    def load(self, conversations: Sequence[Packed], stats: SftStats) -> None:
        """Replace the buffer by `conversations` and go on counting from `stats`."""
        self._buffer = LengthBuffer()
        for conversation in conversations:
            self.add(conversation)
        self.stats = stats
