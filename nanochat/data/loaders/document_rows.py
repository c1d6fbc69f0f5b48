"""Rows for pretraining: documents drawn from a mixture of streams, tokenized, and packed by best fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

import numpy as np

from nanochat.data.loaders.batches import Row, StateDict
from nanochat.data.mixture import Mixture, Stream
from nanochat.data.packing.documents import DocumentPacker, DocumentStats, IntArray
from nanochat.errors import PreflightError

_DOCUMENTS_PER_REFILL = 64

Document = str | IntArray
"""A document as text, or as its token ids without BOS."""


class BatchTokenizer(Protocol):
    """The part of a tokenizer that these rows need."""

    @property
    def bos_id(self) -> int:
        """The id in front of every document."""

    def encode_batch(self, texts: Sequence[str]) -> list[IntArray]:
        """Return the ids of each text, int32."""


@dataclass(frozen=True)
class DocumentRowsState:
    """The state after a row. The document arrays are shared with the packer; nobody changes them."""

    buffer: list[IntArray]
    position: dict[str, object]
    stats: DocumentStats
    epoch: int
    """How many times the stream that repeats least had been read to its end."""

    def to_dict(self) -> StateDict:
        """Return the state as a checkpoint keeps it."""
        return {
            "position": self.position,
            "buffer_tokens": np.concatenate(self.buffer) if self.buffer else np.zeros(0, np.int32),
            "buffer_lengths": np.array([len(document) for document in self.buffer], dtype=np.int32),
            "placed_tokens": self.stats.placed_tokens,
            "cropped_tokens": self.stats.cropped_tokens,
        }


class DocumentRows:
    """An endless `RowSource` of packed documents."""

    def __init__(
        self,
        streams: Sequence[tuple[Stream[Document], float]],
        tokenizer: BatchTokenizer,
        *,
        sequence_len: int,
        buffer_documents: int,
    ) -> None:
        """Pack documents of `streams`, drawn in proportion to their weights, into rows of `sequence_len` + 1 tokens.

        Streams may give text or token ids: rows and states are the same.
        """
        self._mixture = Mixture([stream for stream, _ in streams], [weight for _, weight in streams])
        self._tokenizer = tokenizer
        self._packer = DocumentPacker(sequence_len + 1, buffer_documents)

    def next_row(self) -> Row:
        """Return the next row.

        Raises:
            PreflightError, StageError: a stream cannot be read.
        """
        tokens = self._packer.next_row(self._refill)
        return Row(tokens[:-1], tokens[1:])

    def state(self) -> DocumentRowsState:
        """Return the state after the row last returned."""
        return DocumentRowsState(
            self._packer.buffered(), self._mixture.position(), replace(self._packer.stats), self._mixture.epoch
        )

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue after the row at which the state was taken.

        Raises:
            PreflightError: the state belongs to other streams.
        """
        position = state.get("position")
        if not isinstance(position, Mapping):
            raise PreflightError("the checkpoint has no position in the documents; start the stage over with `--force`")
        lengths = np.asarray(state["buffer_lengths"], dtype=np.int64)
        tokens = np.asarray(state["buffer_tokens"], dtype=np.int32)
        assert int(lengths.sum()) == len(tokens), "the recorded buffer is inconsistent"
        documents = np.split(tokens, np.cumsum(lengths)[:-1]) if len(lengths) else []
        self._mixture.seek(position)
        placed, cropped = cast(int, state["placed_tokens"]), cast(int, state["cropped_tokens"])
        self._packer.load(documents, DocumentStats(placed, cropped))

    def _refill(self) -> None:
        documents = [next(self._mixture) for _ in range(_DOCUMENTS_PER_REFILL)]
        texts = [document for document in documents if isinstance(document, str)]
        encoded = iter(self._tokenizer.encode_batch(texts) if texts else ())
        bos = np.array([self._tokenizer.bos_id], dtype=np.int32)
        for document in documents:
            ids = next(encoded) if isinstance(document, str) else document
            self._packer.add(np.concatenate([bos, ids]))
