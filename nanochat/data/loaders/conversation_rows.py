"""Rows for fine-tuning: conversations in a new random order each epoch, packed whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from nanochat.data.loaders.batches import Row, StateDict
from nanochat.data.packing.conversation_packer import (
    ConversationPacker,
    ConversationStats,
    PackedConversation,
    fit_to_row,
)
from nanochat.errors import PreflightError, StageError
from nanochat.plurals import several


class Conversations(Protocol):
    """Tokenized conversations by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Sequence[int], Sequence[int]]:
        """Return the token ids and the loss mask of a conversation, of equal length."""


@dataclass(frozen=True)
class ConversationRowsState:
    """The state after a row.

    Attributes:
        buffer: the numbers of the conversations that wait in the packing buffer.
        drawn: conversations drawn so far, over all epochs.
        stats: counts so far.
        epoch_conversations: conversations in an epoch.
        total_conversations: conversations in the whole run, repetitions included; None for an endless run.
    """

    buffer: list[int]
    drawn: int
    stats: ConversationStats
    epoch_conversations: int
    total_conversations: int | None

    @property
    def epochs_done(self) -> float:
        """Epochs that the rows so far amount to; a dropped conversation counts as done."""
        done = self.stats.placed_conversations + self.stats.dropped_conversations
        return done / self.epoch_conversations

    @property
    def progress(self) -> float:
        """Fraction of the run that the rows so far amount to; always 0 for an endless run."""
        if self.total_conversations is None:
            return 0.0
        return self.epochs_done * self.epoch_conversations / self.total_conversations

    def to_dict(self) -> StateDict:
        """Return the state as a checkpoint keeps it."""
        return {
            "waiting": np.array(self.buffer, dtype=np.int64),
            "drawn": self.drawn,
            "stats": asdict(self.stats),
        }


class ConversationRows:
    """A `RowSource` of packed conversations that repeats them for some epochs, or without end.

    Args:
        conversations: the conversations of an epoch.
        sequence_len: a row has this many inputs, and room for one token more.
        buffer_conversations: conversations among which the packer looks for the best fit.
        pad_id: fills the end of a row.
        seed: decides the order of every epoch.
        epochs: may be a fraction; None for an endless run.
        turn_end_id: the token after which too long a conversation may be cut; without it, such a conversation is
            dropped.

    Raises:
        PreflightError: there is no conversation.
    """

    def __init__(
        self,
        conversations: Conversations,
        *,
        sequence_len: int,
        buffer_conversations: int,
        pad_id: int,
        seed: int,
        epochs: float | None,
        turn_end_id: int | None = None,
    ) -> None:
        if len(conversations) == 0:
            raise PreflightError("the fine-tuning mixture has no conversation; check its tasks, sources and splits")
        self._conversations = conversations
        self._row_tokens = sequence_len + 1
        self._seed = seed
        self._turn_end_id = turn_end_id
        self._total = None if epochs is None else max(1, round(epochs * len(conversations)))
        self._packer = ConversationPacker(self._row_tokens, buffer_conversations, pad_id)
        self._drawn = 0
        self._shuffled: tuple[int, npt.NDArray[np.int64]] = (-1, np.zeros(0, np.int64))
        """An epoch and its order."""

    def next_row(self) -> Row | None:
        """Return the next row, or None once every conversation of the run has been placed or dropped.

        Raises:
            StageError: in a whole epoch, no conversation fits a row and has a supervised token.
        """
        row = self._packer.next_row(self._draw)
        return None if row is None else Row(*row)

    def state(self) -> ConversationRowsState:
        """Return the state after the row last returned."""
        buffer, stats = self._packer.buffered(), replace(self._packer.stats)
        return ConversationRowsState(buffer, self._drawn, stats, len(self._conversations), self._total)

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue after the row at which the state was taken.

        Raises:
            PreflightError: the state belongs to other conversations.
        """
        buffer, drawn, stats = state.get("waiting"), state.get("drawn"), state.get("stats")
        if not (isinstance(buffer, np.ndarray) and isinstance(drawn, int) and isinstance(stats, Mapping)):
            raise PreflightError("the checkpoint has no state of conversations; start the stage over with `--force`")
        if len(buffer) and int(buffer.max()) >= len(self._conversations):
            raise PreflightError(
                f"the mixture has {several(len(self._conversations), 'conversation')}, fewer than when the "
                "checkpoint was saved; restore the data, or start the stage over with `--force`"
            )
        fitted = [self._fit(int(number)) for number in buffer]
        counts = ConversationStats(**{field.name: int(stats[field.name]) for field in fields(ConversationStats)})
        self._packer.load([conversation for conversation in fitted if conversation is not None], counts)
        self._drawn = drawn

    def _draw(self) -> PackedConversation | None:
        """Return the next conversation that can be placed, or None at the end of the run."""
        dropped_in_a_row = 0
        while self._total is None or self._drawn < self._total:
            conversation = self._fit(self._number(self._drawn))
            self._drawn += 1
            if conversation is not None:
                self._packer.stats.cut_conversations += conversation.is_cut
                return conversation
            self._packer.stats.dropped_conversations += 1
            dropped_in_a_row += 1
            if dropped_in_a_row == len(self._conversations):
                raise StageError(
                    f"none of {several(dropped_in_a_row, 'conversation')} fits {self._row_tokens:,} tokens with an "
                    "answer in it; raise `sft.sequence_len`"
                )
        return None

    def _fit(self, number: int) -> PackedConversation | None:
        ids, mask = self._conversations[number]
        return fit_to_row(ids, mask, number=number, row_tokens=self._row_tokens, turn_end_id=self._turn_end_id)

    def _number(self, drawn: int) -> int:
        """Return which conversation comes after `drawn` others."""
        epoch, place = divmod(drawn, len(self._conversations))
        if self._shuffled[0] != epoch:
            # RandomState: numpy promises that its stream never changes, and a resumed run must see the same order.
            words = [self._seed & 0xFFFFFFFF, self._seed >> 32, epoch]
            self._shuffled = (epoch, np.random.RandomState(words).permutation(len(self._conversations)))
        return int(self._shuffled[1][place])
