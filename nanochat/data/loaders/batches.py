"""Batches of packed rows for training: dealt to the ranks, made ahead of time in a thread, resumable after any batch.

The rows come from a `RowSource`: `document_rows` for pretraining, `conversation_rows` for fine-tuning.
Shapes: B rows per batch, T tokens per row.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from nanochat.data.packing.document_packer import IntArray

_PREFETCHED_BATCHES = 4

StateDict = dict[str, object]
"""What a checkpoint keeps of a loader: numpy arrays and JSON-able values."""


class Row(NamedTuple):
    """Inputs and the tokens that follow them, both (T,) int32; targets of -1 are not scored."""

    inputs: IntArray
    targets: IntArray


class Pass(NamedTuple):
    """One forward and backward pass of a step. The loss is the weighted sum of its targets' cross-entropies."""

    inputs: IntArray
    """(B, T) int32."""
    targets: IntArray
    """(B, T) int32; -1 is not scored."""
    weights: float | npt.NDArray[np.float32]
    """One weight, or one for each target (B, T)."""


@dataclass(frozen=True)
class Batch:
    """Inputs and the tokens that follow them, both (B, T) int32; targets of -1 are not scored.

    `elsewhere_tokens` counts the scored targets in the rows that other ranks received of the same batch.
    """

    inputs: IntArray
    targets: IntArray
    elsewhere_tokens: int = 0

    @property
    def valid_tokens(self) -> int:
        """The number of scored targets in the whole batch, of all ranks."""
        return _scored_tokens(self.targets) + self.elsewhere_tokens

    def passes(self, micro_batch_size: int) -> list[Pass]:
        """Return the passes, whose loss is the mean over the scored targets of the whole batch."""
        weight, rows = 1 / self.valid_tokens, range(0, len(self.inputs), micro_batch_size)
        parts = [slice(start, start + micro_batch_size) for start in rows]
        return [Pass(self.inputs[part], self.targets[part], weight) for part in parts]


class RowState(Protocol):
    """A row source's state at one moment; packing further rows does not change it."""

    def to_dict(self) -> StateDict:
        """Return the state as a checkpoint keeps it."""


State = TypeVar("State", bound=RowState, covariant=True)


class RowSource(Protocol[State]):
    """A sequence of packed rows, the same for every rank."""

    def next_row(self) -> Row | None:
        """Return the next row, or None after the last one."""

    def state(self) -> State:
        """Return the state after the row last returned."""

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue after the row at which the state was taken.

        Raises:
            PreflightError: the state belongs to other data.
        """


class BatchLoader(Generic[State]):
    """Batches of the rows of a source, packed by a thread that runs ahead.

    Every rank packs the same sequence of rows and keeps its own: rank r of W keeps rows r, r + W, r + 2W and so on.
    All ranks therefore have the same state, and training can resume from it with a different number of ranks.

    Args:
        rows: the source of rows; only the loader's thread may use it from here on.
        rows_per_batch: rows that this rank receives in each batch.
        pad_id: fills the row of a rank that the last batch has no row for; that row is masked.
        rank: this process, from 0 to `world_size` - 1.
        world_size: the number of processes that share each batch.
    """

    def __init__(
        self, rows: RowSource[State], *, rows_per_batch: int, pad_id: int, rank: int = 0, world_size: int = 1
    ) -> None:
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        self._rows = rows
        self._rows_per_batch = rows_per_batch
        self._pad_id = pad_id
        self._rank, self._world_size = rank, world_size
        self._thread = ThreadPoolExecutor(1, "batches")
        self._prefetched: deque[Future[tuple[Batch, State]]] = deque()
        self._state = rows.state()

    @property
    def state(self) -> State:
        """The row source's state after the batch last returned, however far the thread has run ahead."""
        return self._state

    def next(self) -> Batch:
        """Return the next batch, (B, T); the last one of a limited run may have fewer rows.

        Raises:
            StopIteration: the row source has no row left.
            PreflightError, StageError: the row source raised it while packing this batch.
        """
        while len(self._prefetched) <= _PREFETCHED_BATCHES:
            self._prefetched.append(self._thread.submit(self._make_batch))
        # A failed batch stays first in line, so that every later call raises its exception again.
        batch, self._state = self._prefetched[0].result()
        self._prefetched.popleft()
        return batch

    def state_dict(self) -> StateDict:
        """Return the state after the batch last returned."""
        return self._state.to_dict()

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue with the batch that followed when `state_dict` returned `state`.

        Raises:
            PreflightError: the state belongs to other data.
        """
        self.close()
        self._thread = ThreadPoolExecutor(1, "batches")
        self._rows.load_state_dict(state)
        self._state = self._rows.state()

    def close(self) -> None:
        """End the thread. The batches it made ahead are lost: only `load_state_dict` may follow."""
        self._thread.shutdown(cancel_futures=True)
        self._prefetched.clear()

    def _make_batch(self) -> tuple[Batch, State]:
        rows = list(itertools.islice(iter(self._rows.next_row, None), self._rows_per_batch * self._world_size))
        if not rows:
            raise StopIteration
        own = rows[self._rank :: self._world_size] or [self._masked_row_like(rows[0])]
        inputs, targets = np.stack([row.inputs for row in own]), np.stack([row.targets for row in own])
        elsewhere_tokens = sum(_scored_tokens(row.targets) for row in rows) - _scored_tokens(targets)
        return Batch(inputs, targets, elsewhere_tokens), self._rows.state()

    def _masked_row_like(self, row: Row) -> Row:
        return Row(np.full_like(row.inputs, self._pad_id), np.full_like(row.targets, -1))


def _scored_tokens(targets: IntArray) -> int:
    return int((targets >= 0).sum())
