"""Batches for fine-tuning: conversations shuffled anew each epoch, packed whole, made ahead of time, resumable.

Shapes: B rows per batch, T tokens per row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from nanochat.data.loaders.prefetch import Prefetcher
from nanochat.data.loaders.pretrain import Batch, State
from nanochat.data.packing.conversations import ConversationPacker, Packed, SftStats, fit
from nanochat.errors import PreflightError, StageError

_PREFETCHED_BATCHES = 4


class Conversations(Protocol):
    """Rendered conversations by number."""

    def __len__(self) -> int:
        """Return how many there are."""

    def __getitem__(self, index: int, /) -> tuple[Sequence[int], Sequence[int]]:
        """Return ids and loss mask of one, of equal length."""


@dataclass(frozen=True)
class _Moment:
    """The state of the loader behind a batch."""

    waiting: list[int]
    drawn: int
    stats: SftStats


class SftLoader:
    """Batches of packed conversations, `epochs` times each or without end, made in a thread that runs ahead."""

    def __init__(
        self,
        conversations: Conversations,
        *,
        sequence_len: int,
        rows_per_batch: int,
        buffer_conversations: int,
        pad_id: int,
        seed: int,
        epochs: float | None,
        turn_end_id: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Pack `conversations` into rows of `sequence_len` + 1 tokens.

        Every epoch has an order of its own, drawn from `seed`. `epochs` may be a fraction; None is without end. A
        conversation that is too long is cut behind a `turn_end_id` where one is given. Every rank packs the same
        sequence of rows and hands out its own: row r, r + world_size, and so on; `rows_per_batch` is what a rank gets.

        Raises:
            PreflightError: there is no conversation.
        """
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        if len(conversations) == 0:
            raise PreflightError("the fine-tuning mixture has no conversation; check its tasks, sources and splits")
        self._conversations = conversations
        self._rows_per_batch = rows_per_batch
        self._sequence_len = sequence_len
        self._seed = seed
        self._rank, self._world_size = rank, world_size
        self._turn_end_id = turn_end_id
        self._epochs = epochs
        self._total = None if epochs is None else max(1, round(epochs * len(conversations)))
        self._packer = ConversationPacker(sequence_len + 1, buffer_conversations, pad_id)
        self._pad_id = pad_id
        self._drawn = 0
        self._order: tuple[int, npt.NDArray[np.int64]] = (-1, np.zeros(0, np.int64))
        self._prefetcher: Prefetcher[tuple[Batch, _Moment]] | None = None
        self._last = self._moment()

    def next(self) -> Batch:
        """Return the next batch, (B, T) each; the last one of a limited run may have fewer rows.

        Raises:
            StopIteration: all conversations have been placed.
            StageError: no conversation of a whole epoch fits a row and supervises anything.
        """
        if self._prefetcher is None:
            self._prefetcher = Prefetcher(self._make, _PREFETCHED_BATCHES)
        batch, self._last = self._prefetcher.next()
        return batch

    @property
    def stats(self) -> SftStats:
        """Counts up to the batch last handed out."""
        return self._last.stats

    @property
    def epochs_done(self) -> float:
        """Passes over the conversations that the batches handed out so far make up, those dropped counted as done."""
        done = self._last.stats.placed_conversations + self._last.stats.dropped_conversations
        return done / len(self._conversations)

    @property
    def progress(self) -> float:
        """Share of the run that has been handed out, 0 to 1; 0 where it has no end."""
        return 0.0 if self._total is None else self.epochs_done * len(self._conversations) / self._total

    def state_dict(self) -> State:
        """Return the state behind the batch last handed out: numpy arrays and JSON-able values; equal on all ranks."""
        waiting = np.array(self._last.waiting, dtype=np.int64)
        return {"waiting": waiting, "drawn": self._last.drawn, "stats": asdict(self._last.stats)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go to where `state_dict` was taken; the next batch is the one that came next then.

        Raises:
            PreflightError: the state is not one of these conversations.
        """
        self.close()
        waiting, drawn, stats = state.get("waiting"), state.get("drawn"), state.get("stats")
        if not (isinstance(waiting, np.ndarray) and isinstance(drawn, int) and isinstance(stats, Mapping)):
            raise PreflightError("the recorded data state is not one of conversations; start the stage anew")
        if len(waiting) and int(waiting.max()) >= len(self._conversations):
            raise PreflightError("there are fewer conversations than when the data state was recorded")
        packed = [self._fit(int(number))[0] for number in waiting]
        counts = {field.name: int(stats[field.name]) for field in fields(SftStats)}
        self._packer.load([one for one in packed if one is not None], SftStats(**counts))
        self._drawn = drawn
        self._last = self._moment()

    def close(self) -> None:
        """End the thread; batches made ahead are lost, so go on only by `load_state_dict`."""
        if self._prefetcher is not None:
            self._prefetcher.close()
            self._prefetcher = None

    def _make(self) -> tuple[Batch, _Moment]:
        rows: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]] = []
        while len(rows) < self._rows_per_batch * self._world_size:
            row = self._packer.next_row(self._draw)
            if row is None:
                break
            rows.append(row)
        if not rows:
            raise StopIteration
        mine = rows[self._rank :: self._world_size] or [self._nothing()]
        inputs, targets = np.stack([row[0] for row in mine]), np.stack([row[1] for row in mine])
        scored = sum(int((row[1] >= 0).sum()) for row in rows)
        return Batch(inputs, targets, elsewhere_tokens=scored - int((targets >= 0).sum())), self._moment()

    def _nothing(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Return a masked row: for a rank that the last batch has no row for, while other ranks have some."""
        ids = np.full(self._sequence_len, self._pad_id, dtype=np.int32)
        return ids, np.full_like(ids, -1)

    def _draw(self) -> Packed | None:
        """Return the next conversation that can be placed, None at the end of the run."""
        dropped_in_a_row = 0
        while self._total is None or self._drawn < self._total:
            packed, is_cut = self._fit(self._number(self._drawn))
            self._drawn += 1
            if packed is not None:
                self._packer.stats.cut_conversations += is_cut
                return packed
            self._packer.stats.dropped_conversations += 1
            dropped_in_a_row += 1
            if dropped_in_a_row == len(self._conversations):
                raise StageError(
                    f"none of the {dropped_in_a_row:,} conversations fits {self._sequence_len + 1:,} tokens with an "
                    "answer in it; raise `sft.sequence_len`"
                )
        return None

    def _fit(self, number: int) -> tuple[Packed | None, bool]:
        ids, mask = self._conversations[number]
        return fit(ids, mask, number=number, row_tokens=self._sequence_len + 1, turn_end_id=self._turn_end_id)

    def _number(self, drawn: int) -> int:
        epoch, place = divmod(drawn, len(self._conversations))
        if self._order[0] != epoch:
            # RandomState: numpy promises that its stream never changes, and a resumed run must see the same order.
            words = [self._seed & 0xFFFFFFFF, self._seed >> 32, epoch]
            self._order = (epoch, np.random.RandomState(words).permutation(len(self._conversations)))
        return int(self._order[1][place])

    def _moment(self) -> _Moment:
        return _Moment(self._packer.waiting(), self._drawn, replace(self._packer.stats))
