"""Batches for pretraining: documents tokenized, packed into rows and made ahead of time, resumable at any batch.

Shapes: B rows per batch, T tokens per row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from nanochat.data.documents import Mixture, Stream
from nanochat.data.loaders.prefetch import Prefetcher
from nanochat.data.packing.documents import BestFitPacker, IntArray, PackingStats
from nanochat.errors import PreflightError

_DOCUMENTS_PER_REFILL = 64
_PREFETCHED_BATCHES = 4

State = dict[str, object]
Document = str | IntArray
"""A document as text, or as its token ids without BOS."""


class BatchTokenizer(Protocol):
    """What is needed of a tokenizer here."""

    @property
    def bos_id(self) -> int:
        """The id that starts every document."""

    def encode_batch(self, texts: Sequence[str]) -> list[IntArray]:
        """Return the ids of each text, int32."""


@dataclass(frozen=True)
class Batch:
    """Inputs and the tokens that follow them, both (B, T) int32; targets of -1 are not scored.

    `elsewhere_tokens` counts the scored targets of the rows that other ranks got of the same batch.
    """

    inputs: npt.NDArray[np.int32]
    targets: npt.NDArray[np.int32]
    elsewhere_tokens: int = 0


@dataclass(frozen=True)
class _Moment:
    """The state of the loader behind a batch; arrays are shared, never changed."""

    documents: list[IntArray]
    position: dict[str, object]
    stats: PackingStats
    epoch: int


class PretrainLoader:
    """An endless supply of batches from a mixture of document streams, made in a thread that runs ahead."""

    def __init__(
        self,
        streams: Sequence[tuple[Stream[Document], float]],
        tokenizer: BatchTokenizer,
        *,
        sequence_len: int,
        rows_per_batch: int,
        buffer_documents: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Pack documents of `streams`, drawn by their weights, into rows of `sequence_len` + 1 tokens.

        What a stream gives as text is tokenized here; the rows and the state are the same either way.

        Every rank packs the same global sequence of rows and hands out its own: row r, r + world_size, and so on.
        `rows_per_batch` is the number of rows a rank gets.
        """
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        self._mixture = Mixture([stream for stream, _ in streams], [weight for _, weight in streams])
        self._tokenizer = tokenizer
        self._rows_per_batch = rows_per_batch
        self._rank = rank
        self._world_size = world_size
        self._row_tokens = sequence_len + 1
        self._packer = BestFitPacker(self._row_tokens, buffer_documents)
        self._prefetcher: Prefetcher[tuple[Batch, _Moment]] | None = None
        self._last = self._moment()

    def next(self) -> Batch:
        """Return the next batch, (B, T) each.

        Raises:
            PreflightError, StageError: as the streams; the error comes in the turn of the batch that it hit.
        """
        if self._prefetcher is None:
            self._prefetcher = Prefetcher(self._make, _PREFETCHED_BATCHES)
        batch, self._last = self._prefetcher.next()
        return batch

    @property
    def stats(self) -> PackingStats:
        """Tokens placed and cropped up to the batch last handed out."""
        return self._last.stats

    @property
    def epoch(self) -> int:
        """How often the data had been read to its end when the batch last handed out was made."""
        return self._last.epoch

    def state_dict(self) -> State:
        """Return the state behind the batch last handed out: numpy arrays and JSON-able values.

        It is the same on every rank.
        """
        documents = self._last.documents
        return {
            "position": self._last.position,
            "buffer_tokens": np.concatenate(documents) if documents else np.zeros(0, np.int32),
            "buffer_lengths": np.array([len(document) for document in documents], dtype=np.int32),
            "placed_tokens": self._last.stats.placed_tokens,
            "cropped_tokens": self._last.stats.cropped_tokens,
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go to where `state_dict` was taken; the next batch is the one that came next then.

        Raises:
            PreflightError: the state is not one of this loader and these sources.
        """
        self.close()
        position = state.get("position")
        if not isinstance(position, Mapping):
            raise PreflightError("the recorded data state has no position; start the stage anew")
        lengths = np.asarray(state["buffer_lengths"], dtype=np.int64)
        tokens = np.asarray(state["buffer_tokens"], dtype=np.int32)
        assert int(lengths.sum()) == len(tokens), "the recorded buffer is inconsistent"
        documents = np.split(tokens, np.cumsum(lengths)[:-1]) if len(lengths) else []
        self._mixture.seek(position)
        self._packer.load(documents, PackingStats(_count(state, "placed_tokens"), _count(state, "cropped_tokens")))
        self._last = self._moment()

    def close(self) -> None:
        """End the thread; batches made ahead are lost, so go on only by `load_state_dict`."""
        if self._prefetcher is not None:
            self._prefetcher.close()
            self._prefetcher = None

    def _make(self) -> tuple[Batch, _Moment]:
        rows = np.empty((self._rows_per_batch, self._row_tokens), dtype=np.int32)
        for i in range(self._rows_per_batch * self._world_size):
            row = self._packer.next_row(self._refill)
            if i % self._world_size == self._rank:
                rows[i // self._world_size] = row
        inputs, targets = np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])
        return Batch(inputs, targets, elsewhere_tokens=(self._world_size - 1) * targets.size), self._moment()

    def _refill(self) -> None:
        documents = [next(self._mixture) for _ in range(_DOCUMENTS_PER_REFILL)]
        texts = [document for document in documents if isinstance(document, str)]
        encoded = iter(self._tokenizer.encode_batch(texts) if texts else ())
        bos = np.array([self._tokenizer.bos_id], dtype=np.int32)
        for document in documents:
            ids = next(encoded) if isinstance(document, str) else document
            self._packer.add(np.concatenate([bos, ids]))

    def _moment(self) -> _Moment:
        return _Moment(
            self._packer.documents(), self._mixture.position(), replace(self._packer.stats), self._mixture.epoch
        )


def _count(state: Mapping[str, object], name: str) -> int:
    value = state[name]
    assert isinstance(value, int), f"{name} is a count"
    return value
