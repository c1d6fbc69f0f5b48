"""Checks of single files: whether they are complete, whether they have content, and which of their lines count."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nanochat.data.files.bad_rows import RowProblems
from nanochat.data.files.cursors import START
from nanochat.data.files.digests import LineFilter
from nanochat.data.files.file_kinds import reader_of
from nanochat.data.files.file_selection import EMPTY, NO_USABLE_ROW
from nanochat.data.files.formats.json_lines import JsonLine, json_lines, parse_line
from nanochat.data.files.formats.parquet_batches import open_parquet
from nanochat.data.files.formats.readable_file import ReadableFile
from nanochat.data.files.readers import decode_line, read_texts
from nanochat.errors import PreflightError, StageError

_MAX_POINTER_BYTES = 1024
_POINTER_START = b"version https://git-lfs.github.com/spec/v1"


def check_file(path: Path) -> None:
    """Check that a file exists, is not empty, and (parquet) not cut off. It may have no rows.

    Raises:
        PreflightError: the message names the file.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise PreflightError(f"{path}: cannot be read ({error.strerror})") from error
    if size == 0:
        raise PreflightError(f"{path}: the file is empty")
    if size < _MAX_POINTER_BYTES and path.read_bytes().startswith(_POINTER_START):
        raise PreflightError(f"{path}: a Git LFS pointer, not the data: run `git lfs pull`")
    if reader_of(path) == "parquet":
        try:
            open_parquet(ReadableFile(path))
        except StageError as error:
            raise PreflightError(str(error)) from error


def _has_text(file: ReadableFile, column: str, problems: RowProblems | None = None) -> bool:
    """Return whether a file holds a text that is not blank. Raises as `read_texts`."""
    return any(text for text, _ in read_texts(file, column, START, max_chars=None, problems=problems))


def why_without_text(files: Iterable[ReadableFile], column: str, problems: RowProblems | None = None) -> str | None:
    """Return why files hold no text, or None if at least one does. Raises as `read_texts`."""
    problems = problems or RowProblems()
    bad_before, problems.bad = problems.bad, 0
    if any(_has_text(file, column, problems) for file in files):
        reason = None
    else:
        reason = NO_USABLE_ROW if problems.bad else EMPTY
    problems.bad += bad_before
    return reason


def has_rows(file: ReadableFile) -> bool:
    """Return whether a parquet file has rows, or a jsonl file a line that is not blank."""
    if reader_of(file.path) == "parquet":
        return bool(open_parquet(file).metadata.num_rows)
    return next(json_lines(file.path), None) is not None


def document_lines(column: str) -> LineFilter:
    """Return the rule for digests: jsonl lines count if they have text in `column`, text lines if they are UTF-8."""

    def is_usable(path: Path, raw: bytes) -> bool:
        if reader_of(path) == "text lines":
            return decode_line(raw, is_first=False)[1] is None
        try:
            return bool(JsonLine(path, 0, *parse_line(raw), 0).text_in(column).strip())
        except ValueError:
            return False

    return LineFilter(f"documents in {column}", is_usable)
