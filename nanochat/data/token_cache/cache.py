"""Tokenized documents in memory-mapped files, shared by all runs with the same tokenizer and source.

<base>/tokens/<key>/parts.json       what the contents depend on, and what the files of each finished part are like
                    00000.tokens     the ids of the documents of the source's first file, one after the other
                    00000.index.npy  for each document, the end of its ids and the source's position after it

The content of every file is checked before it is used. A build that was killed continues with the first unfinished
part, and one that finds a damaged part starts again with that part. A `CachedStream` has the documents, epochs and
positions of a `DocumentStream`, so that a run can resume with or without the cache.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from nanochat.data.documents import DocumentStream
from nanochat.data.files.cursors import DocumentPosition
from nanochat.data.source_splits import Split
from nanochat.data.sources.source_contents import content_digest
from nanochat.data.sources.source_spec import SourceSpec, describe
from nanochat.data.token_cache.parts import (
    FOLDER,
    LIST_FILE,
    OnProgress,
    Part,
    PartList,
    TokenType,
    delete_parts,
    last_place,
    locked,
    open_parts,
    read_list,
    whole_parts,
    write_list,
    write_part,
)
from nanochat.errors import PreflightError
from nanochat.storage.files import delete_scratch
from nanochat.tokenizer.bpe import Tokenizer
from nanochat.tokenizer.pieces import IntArray

FORMAT = 4
"""Raised when files change their form, or when the same source gives other documents in a split."""

_BATCH_DOCUMENTS = 64
_SMALL_VOCABULARY = 1 << 16

_Entry = tuple[str, int, tuple[int, ...]]
"""A document, the number of its file, and the source's position after it (cursor and piece)."""


@dataclass(frozen=True)
class CacheKey:
    """Everything that a cache's contents depend on.

    `tokenizer` is the sha256 of the tokenizer's file, and `content` the digest of the source's content.
    """

    tokenizer: str
    content: str
    split: Split
    column: str
    max_files: int | None
    max_document_chars: int | None
    dedup: str | None
    validation_shard: str | None
    validation_hash_frac: float | None
    format: int = FORMAT

    @property
    def name(self) -> str:
        """The name of the cache's folder."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def cached_stream(
    spec: SourceSpec,
    split: Split,
    tokenizer: Tokenizer,
    *,
    base: Path,
    on_progress: OnProgress = lambda documents, tokens: None,
    notify: Callable[[str], None] = lambda _: None,
) -> CachedStream:
    """Return the tokenized documents of a split of a source, after building what the cache lacks.

    If another process is building the same cache, this one waits for it. `notify` is called with the name of a damaged
    file.

    Raises:
        PreflightError, StageError: the source's documents cannot be read.
    """
    key = _key(spec, split, tokenizer, base)
    folder = base / FOLDER / key.name
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= _SMALL_VOCABULARY else "<i4")
    with locked(folder, on_progress):
        listed = read_list(folder)
        if listed is None or listed.key != asdict(key):
            if (path := folder / LIST_FILE).exists():
                notify(f"{path} is damaged, or of an earlier format; all documents are tokenized again")
            listed = PartList(key=asdict(key))
        whole = whole_parts(folder, listed, on_progress=on_progress, notify=notify)
        if not listed.is_complete or len(whole) < len(listed.parts):
            listed = PartList(key=asdict(key), parts=whole)
            listed = _build(DocumentStream(spec, split, base=base), tokenizer, folder, listed, dtype, on_progress)
        parts = open_parts(folder, listed.parts, dtype)
    assert parts, f"{describe(spec)}: the cache has no documents"
    return CachedStream(parts)


class CachedStream:
    """The token ids of documents, without BOS, in the same order every time, repeated without end."""

    def __init__(self, parts: list[Part], start: Mapping[str, object] | None = None) -> None:
        self._parts = parts
        self._ends: list[int] = np.cumsum([len(part.index) for part in parts]).tolist()
        self._count = _documents_before(parts, start)
        """Documents returned so far, over all epochs."""

    @property
    def epoch(self) -> int:
        """How many times the source had been read to its end before the document last returned."""
        return max(self._count - 1, 0) // self._ends[-1]

    def __iter__(self) -> CachedStream:
        return self

    def __next__(self) -> IntArray:
        """Return the ids of the next document, int32."""
        part, row = self._locate(self._count)
        self._count += 1
        begin = int(part.index[row - 1, 0]) if row else 0
        return np.asarray(part.tokens[begin : int(part.index[row, 0])], dtype=np.int32)

    def position(self) -> dict[str, object]:
        """Return, JSON-able, the position after the document last returned, equal to that of a `DocumentStream`."""
        if self._count == 0:
            return DocumentPosition().to_json()
        part, row = self._locate(self._count - 1)
        *cursor, piece = part.place(row)
        return DocumentPosition(self.epoch, part.number, tuple(cursor), piece).to_json()

    def reopened(self, start: Mapping[str, object]) -> CachedStream:
        """Return a new stream of the same documents that continues from `start`."""
        return CachedStream(self._parts, start)

    def _locate(self, document: int) -> tuple[Part, int]:
        within = document % self._ends[-1]
        i = bisect.bisect_right(self._ends, within)
        return self._parts[i], within - (self._ends[i - 1] if i else 0)


def _documents_before(parts: list[Part], start: Mapping[str, object] | None) -> int:
    """Return how many documents, over all epochs, come before a position."""
    position = DocumentPosition.from_json(start)
    before = position.epoch * sum(len(part.index) for part in parts)
    if position == DocumentPosition(position.epoch):
        return before
    place = (*position.cursor, position.piece)
    for part in parts:
        if part.number == position.part:
            row = bisect.bisect_left(range(len(part.index)), place, key=part.place)
            if row < len(part.index) and part.place(row) == place:
                return before + row + 1
        before += len(part.index)
    raise PreflightError(
        f"the checkpoint's data position {position.to_json()} is not one in these documents; "
        "start the stage over with `--force`"
    )


def _key(spec: SourceSpec, split: Split, tokenizer: Tokenizer, base: Path) -> CacheKey:
    return CacheKey(
        tokenizer=hashlib.sha256(tokenizer.model).hexdigest(),
        content=content_digest(spec, base=base),
        split=split,
        column=spec.column,
        max_files=spec.max_files,
        max_document_chars=spec.max_document_chars,
        dedup=spec.dedup,
        validation_shard=spec.validation_shard,
        validation_hash_frac=spec.validation_hash_frac,
    )


def _build(
    stream: DocumentStream,
    tokenizer: Tokenizer,
    folder: Path,
    listed: PartList,
    dtype: TokenType,
    on_progress: OnProgress,
) -> PartList:
    """Tokenize the files of the source that are not listed yet, one after the other, and return the complete list."""
    delete_scratch(folder)
    delete_parts(folder, without=listed.parts)
    write_list(folder, listed)
    documents = tokens = 0

    def encode(entries: Iterator[_Entry]) -> Iterator[tuple[list[IntArray], list[tuple[int, ...]]]]:
        nonlocal documents, tokens
        while batch := list(itertools.islice(entries, _BATCH_DOCUMENTS)):
            encoded = tokenizer.encode_batch([text for text, _, _ in batch])
            yield encoded, [place for _, _, place in batch]
            documents += len(encoded)
            tokens += sum(map(len, encoded))
            on_progress(documents, tokens)

    for number, entries in itertools.groupby(_entries(stream, folder, [*listed.parts]), key=lambda entry: entry[1]):
        part = write_part(folder, number, dtype, encode(entries))
        listed = listed.model_copy(update={"parts": {**listed.parts, number: part}})
        write_list(folder, listed)
    listed = listed.model_copy(update={"is_complete": True})
    write_list(folder, listed)
    return listed


def _entries(stream: DocumentStream, folder: Path, done: list[int]) -> Iterator[_Entry]:
    """Yield each document once, after those of the files in `done`, with its file and the position after it."""
    if done:
        *cursor, piece = last_place(folder, done[-1])
        stream = stream.reopened(DocumentPosition(0, done[-1], tuple(cursor), piece).to_json())
    for text in stream:
        position = DocumentPosition.from_json(stream.position())
        if position.epoch > 0:
            return
        yield text, position.part, (*position.cursor, position.piece)
