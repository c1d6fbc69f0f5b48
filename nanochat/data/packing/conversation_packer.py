"""Best-fit packing of conversations into rows: never cropped, and padded when none fits.

A conversation longer than a row is cut after the last turn of the assistant that fits. If not even the first exchange
fits, or nothing in it is supervised, it is dropped. Cut and dropped conversations are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nanochat.data.packing.document_packer import IntArray
from nanochat.data.packing.length_buffer import LengthBuffer


@dataclass(frozen=True)
class PackedConversation:
    """A conversation that fits a row: token ids and loss mask, both (length,) int32, and its number."""

    ids: IntArray
    mask: IntArray
    number: int
    is_cut: bool

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class ConversationStats:
    """Conversations that were placed, cut and dropped, and what the rows' places hold."""

    placed_conversations: int = 0
    cut_conversations: int = 0
    dropped_conversations: int = 0
    placed_tokens: int = 0
    supervised_tokens: int = 0
    padding_tokens: int = 0

    @property
    def padding_frac(self) -> float:
        """Fraction of the places in rows that hold padding."""
        places = self.placed_tokens + self.padding_tokens
        return self.padding_tokens / places if places else 0.0


def fit_to_row(
    ids: Sequence[int], mask: Sequence[int], *, number: int, row_tokens: int, turn_end_id: int | None
) -> PackedConversation | None:
    """Return the conversation, cut to `row_tokens` if it is longer, or None if it must be dropped.

    `turn_end_id` ends a turn of the assistant; if it is None, a conversation that is too long is dropped.
    """
    all_ids, all_mask = np.asarray(ids, dtype=np.int32), np.asarray(mask, dtype=np.int32)
    assert len(all_ids) == len(all_mask), "ids and mask differ in length"
    length = len(all_ids)
    if length > row_tokens:
        ends = np.flatnonzero((all_ids[:row_tokens] == turn_end_id) & (all_mask[:row_tokens] == 1))
        length = int(ends[-1]) + 1 if len(ends) else 0
    if not all_mask[1:length].any():
        return None
    return PackedConversation(all_ids[:length], all_mask[:length], number, is_cut=length < len(all_ids))


class ConversationPacker:
    """A buffer of conversations, and the rows made from it."""

    def __init__(self, row_tokens: int, buffer_conversations: int, pad_id: int) -> None:
        """Make rows of `row_tokens` tokens from `buffer_conversations`, or from fewer at the end of the data."""
        self._row_tokens = row_tokens
        self._buffer_conversations = buffer_conversations
        self._pad_id = pad_id
        self._buffer: LengthBuffer[PackedConversation] = LengthBuffer(len)
        self.stats = ConversationStats()

    def next_row(self, draw: Callable[[], PackedConversation | None]) -> tuple[IntArray, IntArray] | None:
        """Return the next row as inputs and targets, both (row_tokens - 1,) int32; None when nothing is left.

        Targets are -1 at unsupervised places. `draw` returns the next conversation, or None at the end of the data.
        """
        ids = np.full(self._row_tokens, self._pad_id, dtype=np.int32)
        mask = np.zeros(self._row_tokens, dtype=np.int32)
        filled = 0
        while filled < self._row_tokens:
            while len(self._buffer) < self._buffer_conversations and (drawn := draw()) is not None:
                self._buffer.add(drawn)
            conversation = self._buffer.take_longest_within(self._row_tokens - filled)
            if conversation is None:
                break
            end = filled + len(conversation)
            ids[filled:end], mask[filled:end] = conversation.ids, conversation.mask
            filled = end
            self.stats.placed_conversations += 1
        if filled == 0:
            return None
        self.stats.placed_tokens += filled
        self.stats.padding_tokens += self._row_tokens - filled
        self.stats.supervised_tokens += int(mask.sum())
        return ids[:-1], np.where(mask[1:] == 1, ids[1:], -1).astype(np.int32)

    def buffered(self) -> list[int]:
        """Return the numbers of the conversations in the buffer, in order of arrival."""
        return [conversation.number for conversation in self._buffer]

    def load(self, conversations: Sequence[PackedConversation], stats: ConversationStats) -> None:
        """Replace the buffer's conversations, and continue to count from `stats`."""
        self._buffer = LengthBuffer(len, conversations)
        self.stats = stats
