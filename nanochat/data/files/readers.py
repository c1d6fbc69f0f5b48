"""Texts and rows of one data file, of any kind that is read directly.

A file is read a bounded part at a time, and its texts can be read from a cursor on. Every error names the file, and the
line if there is one.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.data.files.bad_rows import RowProblems
from nanochat.data.files.cursors import START, Cursor
from nanochat.data.files.digests import LineFilter
from nanochat.data.files.file_kinds import READABLE, reader_of
from nanochat.data.files.file_selection import EMPTY, NO_USABLE_ROW
from nanochat.data.files.file_sizes import SMALL_BYTES
from nanochat.data.files.formats.html_text import html_text
from nanochat.data.files.formats.json_lines import JsonLine, json_lines, json_objects, parse_line
from nanochat.data.files.formats.parquet_batches import (
    UnreadableCell,
    cells,
    open_parquet,
    parquet_batches,
    parquet_rows,
)
from nanochat.data.files.formats.streams import encoding_problem, raw_lines, read_before, read_whole
from nanochat.errors import PreflightError, StageError

if TYPE_CHECKING:
    import pyarrow as pa

TXT_DOCUMENT_CHARS = 16_000
_MAX_PAGE_BYTES = 1 << 26
_MAX_POINTER_BYTES = 1024
_POINTER_START = b"version https://git-lfs.github.com/spec/v1"


def read_texts(
    path: Path, column: str, cursor: Cursor, *, max_chars: int | None, problems: RowProblems | None = None
) -> Iterator[tuple[str, Cursor]]:
    """Yield the texts of a file from `cursor` on, each with the cursor after it; blank texts and nulls are skipped.

    A row of a parquet or jsonl file gives one text. Plain text gives texts of whole lines, of at most `max_chars`
    characters unless a single line is longer. Rows that cannot be read are skipped and added to `problems`. If the
    file ends with such rows, the last text is empty, so that its cursor counts them.

    Raises:
        PreflightError: the file or its column is missing, or the format is not supported.
        StageError: the file is damaged, or `problems` has more bad rows than it allows.
    """
    problems = problems or RowProblems()
    reader = reader_of(path)
    if cursor[0] and reader in ("json lines", "text lines"):
        _check_unchanged(path, cursor)
    match reader:
        case "parquet":
            yield from _parquet_texts(path, column, cursor, problems)
        case "json lines":
            yield from _jsonl_texts(path, column, cursor, problems)
        case "text lines":
            yield from _txt_texts(path, cursor, max_chars or TXT_DOCUMENT_CHARS, problems)
        case "html":
            yield from _html_texts(path, cursor, max_chars or TXT_DOCUMENT_CHARS, problems)
        case _:
            raise PreflightError(f"{path}: unsupported format `{path.suffix}`; use {READABLE}")


def _check_unchanged(path: Path, cursor: Cursor) -> None:
    """Check that a cursor, perhaps from a checkpoint, is still at the beginning of its line: lines may be gone."""
    offset, number = cursor[:2]
    before, is_at_end = read_before(path, offset, SMALL_BYTES)
    lines = before.count(b"\n") + (not before.endswith(b"\n"))
    if (offset <= SMALL_BYTES and lines != number) or not (before.endswith(b"\n") or is_at_end):
        raise PreflightError(
            f"{path}: changed before line {number + 1}, where the checkpoint continues; restore the file, or start the "
            "stage over with `--force`"
        )


def document_lines(column: str) -> LineFilter:
    """Return the rule for digests: jsonl lines count if they have text in `column`, text lines if they are UTF-8."""

    def is_usable(path: Path, raw: bytes) -> bool:
        if reader_of(path) == "text lines":
            return _decode_line(raw, is_first=False)[1] is None
        try:
            return bool(JsonLine(path, 0, *parse_line(raw), 0).text_in(column).strip())
        except ValueError:
            return False

    return LineFilter(f"documents in {column}", is_usable)


def read_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, object]]:
    """Yield the rows of a parquet or jsonl file as dicts of plain Python values; all columns if `columns` is None.

    Raises:
        PreflightError: the file or a column is missing.
        StageError: the file is damaged, or a line is not an object.
    """
    if reader_of(path) == "parquet":
        yield from parquet_rows(path, columns)
        return
    for row in json_objects(path, columns or ()):
        yield row if columns is None else {column: row[column] for column in columns}


def check_file(path: Path, columns: Sequence[str]) -> None:
    """Check that a file exists, is not empty or cut off, and (parquet) has `columns`. It may have no rows.

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
            open_parquet(path, columns)
        except StageError as error:
            raise PreflightError(str(error)) from error


def has_text(path: Path, column: str, problems: RowProblems | None = None) -> bool:
    """Return whether a file holds a text that is not blank. Errors are those of `read_texts`."""
    return any(text for text, _ in read_texts(path, column, START, max_chars=None, problems=problems))


def why_without_text(paths: Iterable[Path], column: str, problems: RowProblems | None = None) -> str | None:
    """Return why files hold no text, or None if one of them does. Errors are those of `read_texts`."""
    problems = problems or RowProblems()
    bad_before, problems.bad = problems.bad, 0
    if any(has_text(path, column, problems) for path in paths):
        reason = None
    else:
        reason = NO_USABLE_ROW if problems.bad else EMPTY
    problems.bad += bad_before
    return reason


def has_rows(path: Path) -> bool:
    """Return whether a parquet file has rows, or a jsonl file a line that is not blank."""
    if reader_of(path) == "parquet":
        return bool(open_parquet(path, ()).metadata.num_rows)
    return next(json_lines(path), None) is not None


def _parquet_texts(path: Path, column: str, cursor: Cursor, problems: RowProblems) -> Iterator[tuple[str, Cursor]]:
    bad = counted = cursor[2]
    end = cursor
    for batch, (group, row) in parquet_batches(path, [column], cursor):
        values = batch.column(0)
        if not _is_text(values.type):
            raise PreflightError(f"{path}: column `{column}` holds {values.type}, not text")
        for i, text in enumerate(cells(values)):
            end = (group, row + i + 1, bad)
            if isinstance(text, str) and text and not text.isspace():
                yield text, end
                counted = bad
            elif text is not None and not isinstance(text, str):
                bad += 1
                end = (*end[:2], bad)
                where = _row_place(path, group, row + i)
                problems.add_bad(f"{where}: {_problem_of_cell(column, text)}", bad)
            else:
                problems.add_empty(functools.partial(_row_place, path, group, row + i))
    if bad > counted:
        yield "", end


def _problem_of_cell(column: str, value: object) -> str:
    if isinstance(value, UnreadableCell):
        return f"`{column}` cannot be read: {value.reason}"
    return f"`{column}` is not text: `{json.dumps(value)[:50]}`"


def _row_place(path: Path, group: int, row: int) -> str:
    """Return the file and the number of a row in it, from 1."""
    metadata = open_parquet(path, ()).metadata
    return f"{path} row {sum(metadata.row_group(i).num_rows for i in range(group)) + row + 1}"


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_null(kind):  # every row is without text
        return True
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _jsonl_texts(path: Path, column: str, cursor: Cursor, problems: RowProblems) -> Iterator[tuple[str, Cursor]]:
    bad = counted = cursor[2]
    end = cursor
    for line in json_lines(path, cursor):
        try:
            text = line.text_in(column)
        except ValueError as error:
            bad += 1
            end = (line.next_byte, line.line, bad)
            problems.add_bad(f"{line.where()}: {error}", bad)
            continue
        if text and not text.isspace():
            yield text, (line.next_byte, line.line, bad)
            counted = bad
        else:
            problems.add_empty(line.where)
    if bad > counted:
        yield "", end


def _txt_texts(path: Path, cursor: Cursor, max_chars: int, problems: RowProblems) -> Iterator[tuple[str, Cursor]]:
    """Yield the texts of a txt file. A file that is not UTF-8 text is one bad row."""
    offset, number, bad = cursor
    if not offset and (problem := encoding_problem(path)) is not None:
        if not number:
            problems.add_bad(f"{path}: {problem}", bad + 1)
            yield "", (0, 1, bad + 1)
        return
    yield from _line_texts(path, raw_lines(path, offset), cursor, max_chars, problems)


def _html_texts(path: Path, cursor: Cursor, max_chars: int, problems: RowProblems) -> Iterator[tuple[str, Cursor]]:
    """Yield the text of a page as that of a txt file. A page that cannot be read is one bad row."""
    offset, number, bad = cursor
    if number and not offset:  # the page was bad
        return
    try:
        text = html_text(read_whole(path, _MAX_PAGE_BYTES))
    except ValueError as error:
        problems.add_bad(f"{path}: {error}", bad + 1)
        yield "", (0, 1, bad + 1)
        return
    lines = io.BytesIO(text.encode())
    lines.seek(offset)
    yield from _line_texts(path, lines, cursor, max_chars, problems)


def _line_texts(
    path: Path, lines: Iterable[bytes], cursor: Cursor, max_chars: int, problems: RowProblems
) -> Iterator[tuple[str, Cursor]]:
    """Yield consecutive lines joined to texts of at most `max_chars`; a longer line is a text of its own."""
    offset, number, bad = cursor
    held: list[str] = []
    held_chars, has_content, counted = 0, False, bad
    held_end = cursor
    for raw in lines:
        line, problem = _decode_line(raw, is_first=offset == 0)
        if held and held_chars + len(line) > max_chars:
            if has_content:
                yield "".join(held), held_end
                counted = held_end[2]
            held, held_chars, has_content = [], 0, False
        offset += len(raw)
        number += 1
        if problem is not None:
            bad += 1
            problems.add_bad(f"{path}:{number}: {problem}", bad)
        held.append(line)
        held_chars += len(line)
        has_content = has_content or not (line == "" or line.isspace())
        held_end = (offset, number, bad)
    if has_content or bad > counted:
        yield "".join(held) if has_content else "", held_end


def _decode_line(raw: bytes, *, is_first: bool) -> tuple[str, str | None]:
    """Return the text of a line, or an empty text and what is wrong with the line."""
    try:
        return raw.decode("utf-8-sig" if is_first else "utf-8"), None
    except UnicodeDecodeError as error:
        return "", f"not UTF-8 at byte {error.start + 1} of the line"
