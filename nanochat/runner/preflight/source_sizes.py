"""The sizes of sources, for the plan: rows of tasks, and characters of text.

Nothing here imports pyarrow, which takes long. Not here: which rows are refused or repeated. The stage counts those
when it reads them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

from nanochat.data.files.file_kinds import reader_of
from nanochat.data.files.file_sizes import are_small, estimate_lines
from nanochat.data.files.formats.parquet_footer import count_rows
from nanochat.data.files.formats.readable_file import ReadableFile
from nanochat.data.files.selection.data_file import DataFile
from nanochat.data.ingest.pending import is_ready
from nanochat.data.source_splits import document_files
from nanochat.data.sources.source_spec import SourceSpec, validation_frac
from nanochat.data.splits import parse_split
from nanochat.errors import PreflightError, StageError
from nanochat.plan.estimate.dataset_sizes import builtin_chars, builtin_held_out_chars, known_examples, without_held_out
from nanochat.plan.specs.inputs import SftItem

_CHARS_PER_COMPRESSED_BYTE = 4
"""A rough average for compressed text."""


def count_examples(item: SftItem, *, base: Path) -> int | None:
    """Return about how many different examples a task has, None if its data are not downloaded or converted yet.

    Of large files of lines only the beginning is read.
    """
    if item.source.builtin is not None:
        return known_examples(item)
    try:
        if not is_ready(item.source, base=base):
            return known_examples(item) if item.source.uri is not None else None
        from nanochat.data.task_rows import split_files  # imported only if there is something to count

        name, bounds = parse_split(item.split)
        count = sum(_count(file) for file in split_files(item.source, name, base=base))
    except (OSError, ValueError, PreflightError, StageError):  # the checks of the data report it
        return None
    count = len(range(count)[bounds or slice(None)])
    return without_held_out(min(count, item.max_examples or count), item.validation_frac)


def text_chars(source: SourceSpec, *, base: Path) -> int | None:
    """Return about how many characters of training text a source has, None if that is unknown without reading it."""
    if source.path is None:
        return builtin_chars(source)
    try:
        return _sum_chars(document_files(source, base=base).train)
    except PreflightError:  # already listed in `problems`
        return None


def held_out_chars(source: SourceSpec, *, base: Path) -> int | None:
    """Return about how many characters of held-out text a source has, None if that is not known.

    If a hash chooses the documents, small text is read, because a few long documents are far from the average share.
    Of text that is large or not converted yet, this share is returned.
    """
    if source.path is None:
        return builtin_held_out_chars(source)
    try:
        files = document_files(source, base=base)
        if files.validation:
            return _sum_chars(files.validation)
        if not are_small(file.path for file in files.train) or not is_ready(source, base=base):
            return round(validation_frac(source) * _sum_chars(files.train))
        return _read_held_out(source, base, tuple(_stamp(file.path) for file in files.train))
    except (OSError, PreflightError, StageError):  # the checks of the data report it
        return None


@functools.lru_cache(maxsize=64)
def _read_held_out(source: SourceSpec, base: Path, _stamps: tuple[tuple[int, int], ...]) -> int:
    """Return how many characters the held-out documents of a source have. `_stamps` change with its files."""
    from nanochat.data.documents import single_pass  # imported only if there is text to read

    return sum(len(text) for text in single_pass(source, "validation", base=base))


def _stamp(path: Path) -> tuple[int, int]:
    """Return the size and the modification time of a file."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _sum_chars(files: Iterable[DataFile[Path]]) -> int:
    return sum(file.size * (_CHARS_PER_COMPRESSED_BYTE if _is_compressed(file) else 1) for file in files)


def _is_compressed(file: DataFile[Path]) -> bool:
    kind = file.kind
    return kind is not None and (kind.reader == "parquet" or kind.compression is not None)


def _count(file: ReadableFile) -> int:
    if reader_of(file.path) == "parquet":
        return count_rows(file.path)
    return estimate_lines(file.path, file.path.stat().st_size)
