"""Checks of single files: whether they are complete and have content, and which of their lines count in a digest."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from nanochat.data.files.bad_rows import RowProblems
from nanochat.data.files.cursors import START
from nanochat.data.files.digests import LineFilter
from nanochat.data.files.file_kinds import FileKind, kind_of, reader_of
from nanochat.data.files.formats.encodings import foreign_encoding
from nanochat.data.files.formats.json_lines import JsonLine, json_lines, parse_line
from nanochat.data.files.formats.parquet_batches import open_parquet
from nanochat.data.files.formats.parquet_footer import column_paths
from nanochat.data.files.formats.readable_file import ReadableFile
from nanochat.data.files.formats.streams import raw_lines
from nanochat.data.files.readers import decode_line, read_texts
from nanochat.data.files.selection.file_choice import EMPTY, NO_COLUMN, NO_USABLE_ROW, OTHER_GROUP
from nanochat.errors import PreflightError, StageError

_FORM = 2
"""Raise it when other lines become usable, so that the digests of the usable lines are computed again."""
_SAMPLED_LINES = 100
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


def _has_text(file: ReadableFile, column: str, problems: RowProblems) -> bool:
    """Return whether a file holds a text that is not blank. Raises as `read_texts`."""
    return any(text for text, _ in read_texts(file, column, START, max_chars=None, problems=problems))


def has_rows(file: ReadableFile) -> bool:
    """Return whether a parquet file has rows, or a jsonl file a line that is not blank."""
    if reader_of(file.path) == "parquet":
        return bool(open_parquet(file).metadata.num_rows)
    return next(json_lines(file.path), None) is not None


def why_no_documents(path: Path, column: str) -> str | None:
    """Return why a file with rows that lies beside other texts gives no document: it has no such key or column.

    Looks at the beginning of the file. A file that is damaged has no such reason; its reader reports it.
    """
    status = path.stat()
    return _why_no_documents(path, column, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=1 << 16)  # the files of a source are listed several times
def _why_no_documents(path: Path, column: str, size: int, mtime_ns: int) -> str | None:
    del size, mtime_ns  # a changed file is looked at again
    try:
        match kind_of(path):
            case FileKind(compression="zstd" | "bz2"):
                return None  # a plan must not import pyarrow, which decompresses them
            case FileKind(reader="parquet"):
                has_column = column in {names[0] for names in column_paths(path)}
            case FileKind(reader="json lines"):
                values = [
                    value for line in islice(raw_lines(path, 0), _SAMPLED_LINES) if (value := parse_line(line)[0])
                ]
                has_column = not values or any(isinstance(value, dict) and column in value for value in values)
            case FileKind(format=".csv" | ".tsv"):
                names = re.split(r"[,;|\t]", next(raw_lines(path, 0), b"").decode("utf-8-sig", "replace"))
                has_column = column in {name.strip(' \r\n"') for name in names}
            case _:
                return OTHER_GROUP
    except (OSError, ValueError, PreflightError, StageError):
        return None
    return None if has_column else f"{NO_COLUMN} `{column}`, which holds the documents; `column` names another one"


def document_lines(column: str) -> LineFilter:
    """Return the rule for digests: jsonl lines count if they have text in `column`, text lines if they are UTF-8.

    All lines of a text in another encoding count: it is left out until it is converted.
    """
    is_foreign = functools.cache(lambda path: foreign_encoding(path) is not None)

    def is_usable(path: Path, raw: bytes) -> bool:
        if reader_of(path) == "text lines":
            return decode_line(raw, is_first=False)[1] is None or is_foreign(path)
        try:
            return bool(JsonLine(path, 0, *parse_line(raw), 0).text_in(column).strip())
        except ValueError:
            return False

    return LineFilter(f"documents in {column}, form {_FORM}", is_usable)
