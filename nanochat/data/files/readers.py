"""Reads the texts or the rows of one file, of any kind that needs no conversion (`data.ingest` converts the others).

A file is read a bounded part at a time, and reading texts can continue at a cursor. Every error names the user's file,
and the line or row if there is one. Not here: whether a file has content (`content_checks`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from nanochat.data.files.bad_rows import NOT_UTF8, RowProblems
from nanochat.data.files.cursors import Cursor
from nanochat.data.files.file_kinds import READABLE, reader_of
from nanochat.data.files.file_sizes import SMALL_BYTES
from nanochat.data.files.formats.encodings import encoding_problem, foreign_encoding, not_utf8
from nanochat.data.files.formats.html_text import html_text
from nanochat.data.files.formats.json_lines import found_type, json_lines
from nanochat.data.files.formats.parquet_batches import parquet_rows
from nanochat.data.files.formats.readable_file import FileRow, ReadableFile
from nanochat.data.files.formats.streams import raw_lines, read_before, read_whole
from nanochat.data.files.formats.xml_text import xml_text
from nanochat.data.files.parquet_texts import parquet_texts
from nanochat.data.splits import held_out_by
from nanochat.errors import PreflightError, StageError

TXT_DOCUMENT_CHARS = 16_000
_MAX_PAGE_BYTES = 1 << 26


def read_texts(
    file: ReadableFile,
    column: str,
    cursor: Cursor,
    *,
    max_chars: int | None,
    problems: RowProblems | None = None,
    keeps_held_out: bool = True,
) -> Iterator[tuple[str, Cursor]]:
    """Yield the texts of a file from `cursor` on, each with the cursor after it; blank texts and nulls are skipped.

    A row of a parquet or jsonl file gives one text. Plain text gives texts of whole lines, of at most `max_chars`
    characters unless a single line is longer. Rows that cannot be read are skipped and added to `problems`. If the
    file ends with such rows, the last text is empty, so that its cursor counts them. Without `keeps_held_out`, rows
    that say to belong to a held-out split are skipped too.

    Raises:
        PreflightError: the file is missing, or the format is not supported.
        StageError: the file is damaged, or `problems` has more bad rows than it allows.
    """
    problems = problems or RowProblems()
    path, chars = file.path, max_chars or TXT_DOCUMENT_CHARS
    reader = reader_of(path)
    if cursor[0] and reader in ("json lines", "text lines"):
        _check_unchanged(path, cursor)
    match reader:
        case "parquet":
            yield from parquet_texts(file, column, cursor, problems, keeps_held_out=keeps_held_out)
        case "json lines":
            yield from _json_texts(path, column, cursor, problems, keeps_held_out=keeps_held_out)
        case "text lines":
            yield from _plain_texts(path, cursor, chars, problems)
        case "html":
            yield from _page_texts(path, html_text, cursor, chars, problems)
        case "xml":
            yield from _page_texts(path, xml_text, cursor, chars, problems)
        case _:
            form = f"unsupported format `{path.suffix}`" if path.suffix else "a name without a suffix has no format"
            raise PreflightError(f"{path}: {form}; use {READABLE}")


def _check_unchanged(path: Path, cursor: Cursor) -> None:
    """Raise a PreflightError unless the cursor, which a checkpoint may have kept, is still where its line begins."""
    offset, number = cursor[:2]
    before, is_at_end = read_before(path, offset, SMALL_BYTES)
    lines = before.count(b"\n") + (not before.endswith(b"\n"))
    if (offset <= SMALL_BYTES and lines != number) or not (before.endswith(b"\n") or is_at_end):
        raise PreflightError(
            f"{path}: changed before line {number + 1}, where the checkpoint continues; restore the file, or start the "
            "stage over with `--force`"
        )


def read_values(file: ReadableFile, columns: Sequence[str] | None = None) -> Iterator[FileRow]:
    """Yield the rows of a parquet file as objects, or the values of the lines of a jsonl file; bad ones with a problem.

    Of a parquet file only `columns` are read, or all if it is None.

    Raises:
        PreflightError: the file is missing.
        StageError: the file is damaged.
    """
    if reader_of(file.path) == "parquet":
        yield from parquet_rows(file, columns)
        return
    for line in json_lines(file.path):
        yield FileRow(line.where(), line.value, line.problem)


def read_rows(file: ReadableFile) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield the place and the values of each row of a parquet or jsonl file.

    Raises:
        PreflightError: the file is missing.
        StageError: the file is damaged, a row cannot be read, or it is not an object.
    """
    for row in read_values(file):
        if row.problem is not None:
            raise StageError(f"{row.where}: {row.problem}")
        if not isinstance(row.value, dict):
            raise StageError(f"{row.where}: expected an object, found {found_type(row.value)}")
        yield row.where, row.value


def _json_texts(
    path: Path, column: str, cursor: Cursor, problems: RowProblems, *, keeps_held_out: bool
) -> Iterator[tuple[str, Cursor]]:
    """Yield the texts of a jsonl file, as `read_texts` does."""
    bad = counted = cursor[2]
    end = cursor
    for line in json_lines(path, cursor):
        try:
            text = line.text_in(column)
        except ValueError as error:
            bad += 1
            end = (line.next_byte, line.line, bad)
            problems.add_bad(f"{line.where()}: {error}", bad, once=str(path) if str(error).startswith(NOT_UTF8) else "")
            continue
        if not keeps_held_out and isinstance(line.value, dict) and (reason := held_out_by(line.value)) is not None:
            problems.add_held_out(reason, line.where)
            continue
        if text and not text.isspace():
            yield text, (line.next_byte, line.line, bad)
            counted = bad
        else:
            problems.add_empty(line.where)
    if bad > counted:
        yield "", end


def _plain_texts(path: Path, cursor: Cursor, max_chars: int, problems: RowProblems) -> Iterator[tuple[str, Cursor]]:
    """Yield the texts of a text file, as `read_texts` does. A file in an encoding that is not read is one bad row."""
    offset, number, bad = cursor
    if number and not offset:  # the file was bad
        return
    if not offset and (problem := _encoding_problem(path)) is not None:
        problems.add_bad_file(problem, bad + 1)
        yield "", (0, 1, bad + 1)
        return
    yield from _line_texts(path, raw_lines(path, offset), cursor, max_chars, problems)


def _encoding_problem(path: Path) -> str | None:
    problem = encoding_problem(path)
    return foreign_encoding(path) if problem is None else f"{path}: {problem}"


def _page_texts(
    path: Path, text_of: Callable[[bytes], str], cursor: Cursor, max_chars: int, problems: RowProblems
) -> Iterator[tuple[str, Cursor]]:
    """Yield the text that `text_of` finds in a page, cut at lines like a text file.

    A page for which it raises a ValueError is one bad row.
    """
    offset, number, bad = cursor
    if number and not offset:  # the page was bad
        return
    try:
        text = text_of(read_whole(path, _MAX_PAGE_BYTES))
    except ValueError as error:
        problems.add_bad_file(f"{path}: {error}", bad + 1)
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
        line, problem = decode_line(raw, is_first=offset == 0)
        if held and held_chars + len(line) > max_chars:
            if has_content:
                yield "".join(held), held_end
                counted = held_end[2]
            held, held_chars, has_content = [], 0, False
        offset += len(raw)
        number += 1
        if problem is not None:
            bad += 1
            problems.add_bad(f"{path}:{number}: {problem}", bad, once=str(path))
        held.append(line)
        held_chars += len(line)
        has_content = has_content or not (line == "" or line.isspace())
        held_end = (offset, number, bad)
    if has_content or bad > counted:
        yield "".join(held) if has_content else "", held_end


def decode_line(raw: bytes, *, is_first: bool) -> tuple[str, str | None]:
    """Return the text of a line, or an empty text and what is wrong with the line."""
    try:
        return raw.decode("utf-8-sig" if is_first else "utf-8"), None
    except UnicodeDecodeError as error:
        return "", not_utf8(error)
