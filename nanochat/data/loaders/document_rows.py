"""Rows for pretraining: documents drawn from a mixture of streams, tokenized, and packed by best fit.

Under the rule `keep`, an epoch is exact: every token of a stream's documents is in a row before the first document of
the stream's next epoch enters the buffer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Protocol

import numpy as np

from nanochat.data.loaders.batches import Row, StateDict
from nanochat.data.loaders.stream_mixture import Mixture, Stream
from nanochat.data.packing.document_packer import (
    BufferedDocument,
    DocumentPacker,
    DocumentStats,
    IntArray,
    LongDocuments,
)
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
    """The state after a row. The document arrays are shared with the packer and never change.

    Attributes:
        buffer: the documents that wait in the packing buffer.
        next_document: a document that was read and may not enter the buffer yet.
        epochs: for each stream, the epoch of the last of its documents that entered the buffer.
        position: how far the streams have been read.
        stats: counts so far.
    """

    buffer: list[BufferedDocument]
    next_document: BufferedDocument | None
    epochs: tuple[int, ...]
    position: dict[str, object]
    stats: DocumentStats

    @property
    def epoch(self) -> int:
        """The number of epochs that every stream has finished. With `keep`, rows contain all tokens of those epochs."""
        return min(self.epochs)

    def to_dict(self) -> StateDict:
        """Return the state as a checkpoint keeps it."""
        documents = [*self.buffer, *([self.next_document] if self.next_document else [])]
        return {
            "position": self.position,
            "buffer_tokens": np.concatenate([ids for ids, _ in documents] or [np.zeros(0, np.int32)]),
            "buffer_lengths": np.array([len(ids) for ids, _ in documents], dtype=np.int32),
            "buffer_streams": np.array([stream for _, stream in documents], dtype=np.int32),
            "buffered_documents": len(self.buffer),
            "epochs": list(self.epochs),
            "stats": asdict(self.stats),
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
        long_documents: LongDocuments,
    ) -> None:
        """Pack documents of `streams`, drawn in proportion to their weights, into rows of `sequence_len` + 1 tokens.

        Streams may give text or token ids: rows and states are the same.
        """
        self._mixture = Mixture([stream for stream, _ in streams], [weight for _, weight in streams])
        self._tokenizer = tokenizer
        self._packer = DocumentPacker(
            sequence_len + 1, buffer_documents, bos_id=tokenizer.bos_id, long_documents=long_documents
        )
        self._has_exact_epochs = long_documents == "keep"
        self._next_document: BufferedDocument | None = None
        self._epochs = [0] * len(streams)

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
            buffer=self._packer.buffered(),
            next_document=self._next_document,
            epochs=tuple(self._epochs),
            position=self._mixture.position(),
            stats=replace(self._packer.stats),
        )

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue after the row at which the state was taken.

        Raises:
            PreflightError: the state belongs to other streams.
        """
        position, epochs, stats = state.get("position"), state.get("epochs"), state.get("stats")
        if not (isinstance(position, Mapping) and isinstance(epochs, list) and isinstance(stats, Mapping)):
            raise PreflightError("the checkpoint has no position in the documents; start the stage over with `--force`")
        documents = _documents_in(state)
        buffered = state["buffered_documents"]
        assert isinstance(buffered, int), "the recorded buffer has no size"
        self._mixture.seek(position)
        self._epochs = [int(epoch) for epoch in epochs]
        counts = DocumentStats(**{field.name: int(stats[field.name]) for field in fields(DocumentStats)})
        self._packer.load(documents[:buffered], counts)
        self._next_document = documents[buffered] if buffered < len(documents) else None

    def _refill(self) -> bool:
        """Add documents to the packer, and return whether there was one to add."""
        documents: list[Document] = []
        streams: list[int] = []
        if self._next_document is not None:
            if self._packer.holds(self._next_document.stream):
                return False
            documents.append(self._next_document.ids)
            streams.append(self._next_document.stream)
            self._epochs[self._next_document.stream] += 1
            self._next_document = None
        while len(documents) < _DOCUMENTS_PER_REFILL:
            document, stream, epoch = self._mixture.draw()
            starts_epoch = epoch > self._epochs[stream]
            if starts_epoch and self._has_exact_epochs and (self._packer.holds(stream) or stream in streams):
                self._next_document = BufferedDocument(self._encode([document])[0], stream)
                break
            self._epochs[stream] = epoch
            documents.append(document)
            streams.append(stream)
        for ids, stream in zip(self._encode(documents), streams, strict=True):
            self._packer.add(BufferedDocument(ids, stream))
        return bool(documents)

    def _encode(self, documents: Sequence[Document]) -> list[IntArray]:
        texts = [document for document in documents if isinstance(document, str)]
        encoded = iter(self._tokenizer.encode_batch(texts) if texts else ())
        return [next(encoded) if isinstance(document, str) else document for document in documents]


def _documents_in(state: Mapping[str, object]) -> list[BufferedDocument]:
    """Return the documents of a recorded state: those of the buffer, then the one that did not enter it yet."""
    tokens, lengths, streams = (np.asarray(state[f"buffer_{name}"]) for name in ("tokens", "lengths", "streams"))
    assert int(lengths.sum()) == len(tokens), "the recorded buffer is inconsistent"
    documents = np.split(tokens.astype(np.int32), np.cumsum(lengths)[:-1]) if len(lengths) else []
    return [BufferedDocument(ids, int(stream)) for ids, stream in zip(documents, streams, strict=True)]
