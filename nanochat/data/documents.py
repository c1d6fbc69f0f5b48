"""Endless streams of documents from a source, one side of its split, that go on exactly from a recorded position."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar

from nanochat.data.builtin import stdlib_corpus
from nanochat.data.chunking import chunk_text
from nanochat.data.files.readers import START, TXT_DOCUMENT_CHARS, Cursor, read_texts
from nanochat.data.sources import SourceSpec, describe, resolve_files, validation_frac
from nanochat.data.splits import is_held_out
from nanochat.errors import PreflightError, StageError

Split = Literal["train", "validation"]
Position = Mapping[str, object]
Item_co = TypeVar("Item_co", covariant=True)


@dataclass(frozen=True)
class _Part:
    """A file, or all of a built-in source: yields texts from a cursor on, each with the cursor behind it."""

    read: Callable[[Cursor], Iterator[tuple[str, Cursor]]]
    max_chars: int | None


class DocumentStream:
    """Documents of one side of a source, in the same order every time, over and over.

    A document is on the validation side if its shard is the named one or, where none is named, if a hash of its text
    says so; pieces of a document that is cut at `max_document_chars` stay together.
    """

    def __init__(self, spec: SourceSpec, split: Split, *, base: Path, start: Position | None = None) -> None:
        """Open the stream at its beginning, or where `position()` once was.

        Raises:
            PreflightError: the source, or its validation shard, is missing.
        """
        self._spec = spec
        self._split = split
        self._base = base
        self._parts = _open(spec, split, base)
        self._epoch, self._part, self._cursor, self._piece = parse_position(start)
        if self._part >= max(1, len(self._parts)):
            raise PreflightError(f"{describe(spec)}: has fewer files than when the position was recorded")
        self._texts = self._run()

    @property
    def epoch(self) -> int:
        """How often the source had been read to its end before the last document."""
        return self._epoch

    @property
    def part_count(self) -> int:
        """The number of files, or 1 of a built-in source; a position's `part` is below it."""
        return len(self._parts)

    def __iter__(self) -> DocumentStream:
        """Return the stream itself; it never ends."""
        return self

    def __next__(self) -> str:
        """Return the next document, never an empty one.

        Raises:
            PreflightError, StageError: a file is missing, damaged or without the column; or this side has no document.
        """
        return next(self._texts)

    def position(self) -> dict[str, object]:
        """Return, JSON-able, where the stream stands: behind the document last returned."""
        return {"epoch": self._epoch, "part": self._part, "cursor": list(self._cursor), "piece": self._piece}

    def reopened(self, start: Position) -> DocumentStream:
        """Return a new stream of the same documents that stands at `start`."""
        return DocumentStream(self._spec, self._split, base=self._base, start=start)

    def _run(self) -> Iterator[str]:
        first_part, cursor, first_piece = self._part, self._cursor, self._piece
        from_start = (first_part, cursor, first_piece) == (0, START, 0)
        while True:
            count = 0
            for part in range(first_part, len(self._parts)):
                for text, behind in self._parts[part].read(cursor):
                    pieces = self._pieces(text, self._parts[part].max_chars)
                    for i in range(first_piece, len(pieces)):
                        is_last = i + 1 == len(pieces)
                        self._part = part
                        self._cursor, self._piece = (behind, 0) if is_last else (cursor, i + 1)
                        count += 1
                        yield pieces[i]
                    first_piece = 0
                    cursor = behind
                cursor = START
            if count == 0 and from_start:
                raise StageError(self._nothing())
            from_start = True
            first_part = 0
            self._epoch += 1

    def _pieces(self, text: str, max_chars: int | None) -> list[str]:
        """Return the documents of a text that are on this side of the split."""
        spec = self._spec
        if spec.builtin is not None:
            return [text]
        if spec.validation_shard is None and is_held_out(text, validation_frac(spec)) != (self._split == "validation"):
            return []
        return [text] if max_chars is None else chunk_text(text, max_chars)

    def _nothing(self) -> str:
        spec = self._spec
        rule = (
            f"the shard {spec.validation_shard}"
            if spec.validation_shard is not None
            else f"a hash that holds out {validation_frac(spec):.3g} of the documents"
        )
        return f"{describe(spec)}: no {self._split} document; validation is {rule}: set `validation` or add text"


def single_pass(spec: SourceSpec, split: Split, *, base: Path) -> Iterator[str]:
    """Yield each document once.

    Raises:
        PreflightError, StageError: as the stream.
    """
    stream = DocumentStream(spec, split, base=base)
    for text in stream:
        if stream.epoch > 0:
            return
        yield text


def parse_position(position: Position | None) -> tuple[int, int, Cursor, int]:
    """Return epoch, part, cursor and piece of a stream's position; its beginning where None.

    Raises:
        PreflightError: it is not one.
    """
    if position is None:
        return 0, 0, START, 0
    epoch, part, cursor, piece = (position.get(key) for key in ("epoch", "part", "cursor", "piece"))
    if not (isinstance(epoch, int) and isinstance(part, int) and isinstance(cursor, list) and isinstance(piece, int)):
        raise PreflightError("the recorded data position is not one of a document stream; start the stage anew")
    return epoch, part, tuple(int(number) for number in cursor), piece


class Stream(Protocol[Item_co]):
    """Documents without end, as text or tokens, that go on from a recorded position."""

    @property
    def epoch(self) -> int:
        """How often the source had been read to its end before the last document."""
        ...

    def __next__(self) -> Item_co: ...

    def position(self) -> dict[str, object]:
        """Return, JSON-able, where the stream stands."""
        ...

    def reopened(self, start: Position) -> Stream[Item_co]:
        """Return a new stream of the same documents that stands at `start`."""
        ...


class Mixture(Generic[Item_co]):
    """Documents of several streams in turn, by weight: the stream that is furthest behind its share comes next."""

    def __init__(self, streams: Sequence[Stream[Item_co]], weights: Sequence[float]) -> None:
        assert len(streams) == len(weights) > 0, "one weight a stream"
        assert all(weight > 0 for weight in weights), "weights are positive"
        self._streams = list(streams)
        self._weights = list(weights)
        self._counts = [0] * len(streams)

    @property
    def epoch(self) -> int:
        """How often the stream that repeats least has been read to its end."""
        return min(stream.epoch for stream in self._streams)

    def __iter__(self) -> Mixture[Item_co]:
        """Return the mixture itself; it never ends."""
        return self

    def __next__(self) -> Item_co:
        """Return the next document; raises what the stream raises."""
        i = min(range(len(self._streams)), key=lambda j: ((self._counts[j] + 1) / self._weights[j], j))
        text = next(self._streams[i])
        self._counts[i] += 1
        return text

    def position(self) -> dict[str, object]:
        """Return, JSON-able, how many documents each stream has given and where it stands."""
        return {"counts": list(self._counts), "streams": [stream.position() for stream in self._streams]}

    def seek(self, position: Position) -> None:
        """Go to where `position()` once was.

        Raises:
            PreflightError: the position is of other streams.
        """
        counts, positions = position.get("counts"), position.get("streams")
        if not isinstance(counts, list) or not isinstance(positions, list) or len(positions) != len(self._streams):
            raise PreflightError("the recorded data position is not one of this mixture; start the stage anew")
        self._streams = [stream.reopened(at) for stream, at in zip(self._streams, positions, strict=True)]
        self._counts = [int(count) for count in counts]


def _open(spec: SourceSpec, split: Split, base: Path) -> list[_Part]:
    if spec.builtin == "spelling":
        raise PreflightError(f"{describe(spec)}: holds words, not documents; use it in an sft or eval task")
    if spec.builtin == "python-stdlib":
        if spec.validation_shard is not None:
            raise PreflightError(f"{describe(spec)}: has no shards; give `validation.hash_frac`")
        texts = stdlib_corpus.documents(
            split,
            max_document_chars=spec.max_document_chars,
            held_out_frac=spec.validation_hash_frac,
            max_modules=spec.max_files,
        )
        return [_Part(lambda cursor: _enumerate(texts, cursor), None)]
    files = resolve_files(spec, base=base)
    shard = spec.validation_shard
    if shard is not None:
        if all(file.name != shard for file in files):
            names = ", ".join(file.name for file in files[:5])
            raise PreflightError(f"{describe(spec)}: no validation shard {shard}; its files are: {names}")
        files = tuple(file for file in files if (file.name == shard) == (split == "validation"))
    return [_file_part(file, spec) for file in files]


def _file_part(file: Path, spec: SourceSpec) -> _Part:
    limit = spec.max_document_chars or (TXT_DOCUMENT_CHARS if file.suffix == ".txt" else None)
    return _Part(lambda cursor: read_texts(file, spec.column, cursor, max_chars=limit), limit)


def _enumerate(texts: Sequence[str], cursor: Cursor) -> Iterator[tuple[str, Cursor]]:
    for i in range(cursor[0], len(texts)):
        yield texts[i], (i + 1, 0)
