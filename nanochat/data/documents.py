"""Training or validation documents of a source: an endless stream that resumes from a recorded position.

`source_splits` chooses the files of a split. If validation has no files of its own, `held_out_documents` chooses
documents by their hash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from nanochat.data.files.bad_rows import RowProblems, allowed_bad_rows, shown
from nanochat.data.files.cursors import START, Cursor, DocumentPosition, next_file
from nanochat.data.files.digests import SeenTexts
from nanochat.data.files.file_kinds import kind_of
from nanochat.data.files.file_sizes import estimate_rows
from nanochat.data.files.formats.readable_file import ReadableFile
from nanochat.data.files.held_out_documents import HeldOutRule, choose_rule, chunk_text
from nanochat.data.files.readers import TXT_DOCUMENT_CHARS, read_texts
from nanochat.data.ingest.store import readable_files
from nanochat.data.places.builtin import stdlib_corpus
from nanochat.data.source_splits import Split, document_files
from nanochat.data.sources.source_spec import SourceSpec, describe, validation_frac
from nanochat.errors import PreflightError, StageError
from nanochat.plurals import several


@dataclass(frozen=True)
class _Part:
    """A file, or a whole built-in source: `read` yields its texts from a cursor on, each with the cursor after it."""

    read: Callable[[Cursor, RowProblems], Iterator[tuple[str, Cursor]]]
    max_chars: int | None
    file: ReadableFile | None = None


class DocumentStream:
    """The documents of one split of a source, in the same order every time, repeated without end.

    A text longer than `max_document_chars` gives several documents. A document belongs to validation if it is in a
    validation file. If the source has no such file, `held_out` decides.
    """

    def __init__(
        self,
        spec: SourceSpec,
        split: Split,
        *,
        base: Path,
        start: Mapping[str, object] | None = None,
        notify: Callable[[str], None] = lambda note: None,
    ) -> None:
        """Open the stream at its beginning, or at what `position()` returned. `notify` receives notes on bad rows.

        Raises:
            PreflightError: the source or its validation shard is missing, or has fewer files than `start` refers to.
        """
        self._spec, self._split, self._base = spec, split, base
        self._parts, self._is_hashed = _parts(spec, split, base)
        self._position = DocumentPosition.from_json(start)
        if self._position.part >= max(1, len(self._parts)):
            raise PreflightError(
                f"{describe(spec)}: has {several(len(self._parts), 'file')}, but the checkpoint was reading file "
                f"{self._position.part + 1}; restore the data, or start the stage over with `--force`"
            )
        self._notify = notify
        self._problems = RowProblems(
            describe(spec), lambda: self._allowed_bad_rows, notify, bad=self._position.cursor[2]
        )
        self._documents = self._repeat()

    @property
    def epoch(self) -> int:
        """How many times the source had been read to its end before the document last returned."""
        return self._position.epoch

    def __iter__(self) -> DocumentStream:
        return self

    def __next__(self) -> str:
        """Return the next document, which is never empty.

        Raises:
            PreflightError: a file or its text column is missing.
            StageError: a file is damaged, or the split has no document.
        """
        return next(self._documents)

    def position(self) -> dict[str, object]:
        """Return, JSON-able, the position after the document last returned."""
        return self._position.to_json()

    def reopened(self, start: Mapping[str, object]) -> DocumentStream:
        """Return a new stream of the same documents that continues from `start`."""
        return DocumentStream(self._spec, self._split, base=self._base, start=start, notify=self._notify)

    def _repeat(self) -> Iterator[str]:
        start = self._position
        while True:
            is_empty = True
            seen = self._seen_before(start) if self._spec.dedup == "exact" else None
            for document, position in self._read_from(start, self._problems):
                if seen is not None and not seen.add(document):
                    continue
                is_empty = False
                self._position = position
                yield document
            if is_empty and start == DocumentPosition(start.epoch):
                raise StageError(self._no_document())
            if seen is not None and seen.duplicates and start.epoch == 0:
                self._notify(
                    f"{describe(self._spec)}: left out {several(seen.duplicates, f'duplicate {self._split} document')}"
                )
            self._problems.end_pass()
            start = DocumentPosition(start.epoch + 1)

    def _seen_before(self, position: DocumentPosition) -> SeenTexts:
        """Return the texts already seen: this epoch's up to `position` and, for training, those of validation files."""
        seen = SeenTexts()
        if self._split == "train" and not self._is_hashed:
            for document in single_pass(replace(self._spec, dedup=None), "validation", base=self._base):
                seen.add(document)
            seen.duplicates = 0
        if position == DocumentPosition(position.epoch):
            return seen
        for document, reached in self._read_from(DocumentPosition(position.epoch), RowProblems()):
            if reached.place > position.place:
                break
            seen.add(document)
        return seen

    def _read_from(self, start: DocumentPosition, problems: RowProblems) -> Iterator[tuple[str, DocumentPosition]]:
        """Yield the rest of an epoch: each document with the position after it."""
        cursor, piece = start.cursor, start.piece
        for number in range(start.part, len(self._parts)):
            for text, next_cursor in self._parts[number].read(cursor, problems):
                documents = self._documents_of(text, self._parts[number].max_chars) if text else []
                for i in range(piece, len(documents)):
                    after = (next_cursor, 0) if i + 1 == len(documents) else (cursor, i + 1)
                    yield documents[i], DocumentPosition(start.epoch, number, *after)
                cursor, piece = next_cursor, 0
            cursor = next_file(cursor)

    @cached_property
    def _allowed_bad_rows(self) -> int:
        rows = estimate_rows([part.file for part in self._parts if part.file is not None])
        return allowed_bad_rows(self._spec.max_bad_rows, rows)

    def _documents_of(self, text: str, max_chars: int | None) -> list[str]:
        """Return the documents of a text, none if the text belongs to the other split."""
        if self._held_out_rule is not None:
            wants_held_out = self._split == "validation"
            documents = self._held_out_rule.documents(text, max_chars)
            return [document for document, is_held_out in documents if is_held_out == wants_held_out]
        return [text] if max_chars is None else chunk_text(text, max_chars)

    @cached_property
    def _held_out_rule(self) -> HeldOutRule | None:
        """The rule that divides the documents, None if their files decide."""
        if not self._is_hashed:
            return None
        texts = ((text, part.max_chars) for part in self._parts for text, _ in part.read(START, RowProblems()) if text)
        return choose_rule(texts, validation_frac(self._spec))

    def _no_document(self) -> str:
        rule = self._held_out_rule
        reason = "it holds no text" if rule is not None else "its files hold no text; set `validation`"
        if rule is not None and (chars := rule.only_line_chars):
            advice = f", or set `max_document_chars: {chars // 2}` to cut the line" if chars > 1 else ""
            reason = f"its text is a single line of {several(chars, 'character')}; add another line{advice}"
            if rule.are_all_equal:
                reason = f"all its documents are the same text; add a document with another text{advice}"
        bad = f"; left out:{shown(self._problems.examples)}" if self._problems.examples else ""
        if self._problems.held_out:
            bad += f"; {several(self._problems.held_out, 'row')} of a held-out split"
        return f"{describe(self._spec)}: no {self._split} document; {reason}{bad}"


def single_pass(
    spec: SourceSpec, split: Split, *, base: Path, notify: Callable[[str], None] = lambda note: None
) -> Iterator[str]:
    """Yield each document of a split once. `notify` receives notes on bad rows.

    Raises:
        PreflightError, StageError: as `DocumentStream`.
    """
    stream = DocumentStream(spec, split, base=base, notify=notify)
    for document in stream:
        if stream.epoch > 0:
            return
        yield document


def _parts(spec: SourceSpec, split: Split, base: Path) -> tuple[list[_Part], bool]:
    """Return the files (or built-in source) of a split, and whether a hash of each document decides its split.

    Raises:
        PreflightError: no file is left to train on, or the source or its shard is missing.
    """
    if spec.builtin == "spelling":
        raise PreflightError(f"{describe(spec)}: holds words, not documents; use it in an sft or eval task")
    if spec.builtin == "python-stdlib":
        return [_stdlib_part(spec, split)], False
    files = document_files(spec, base=base)
    is_named = split == "validation" and len(files.validation) > 0
    if not is_named and not files.train:
        raise PreflightError(
            f"{describe(spec)}: no file to train on, because all their names say validation or test; to train on them, "
            "list the files one by one in `path`"
        )
    paths = [file.path for file in (files.validation if is_named else files.train)]
    parts = [_file_part(spec, file, keeps_held_out=is_named) for file in readable_files(paths, base=base)]
    return parts, not files.validation


def _file_part(spec: SourceSpec, file: ReadableFile, *, keeps_held_out: bool) -> _Part:
    kind = kind_of(file.path)
    is_text = kind is not None and not kind.has_rows
    max_chars = spec.max_document_chars or (TXT_DOCUMENT_CHARS if is_text else None)

    def read(cursor: Cursor, problems: RowProblems) -> Iterator[tuple[str, Cursor]]:
        return read_texts(
            file, spec.column, cursor, max_chars=max_chars, problems=problems, keeps_held_out=keeps_held_out
        )

    return _Part(read, max_chars, file)


def _stdlib_part(spec: SourceSpec, split: Split) -> _Part:
    if spec.validation_shard is not None:
        raise PreflightError(f"{describe(spec)}: has no shards; give `validation.hash_frac`")
    texts = stdlib_corpus.documents(
        split,
        max_document_chars=spec.max_document_chars,
        held_out_frac=spec.validation_hash_frac,
        max_modules=spec.max_files,
    )
    return _Part(lambda cursor, _: ((texts[i], (i + 1, 0, 0)) for i in range(cursor[0], len(texts))), None)
