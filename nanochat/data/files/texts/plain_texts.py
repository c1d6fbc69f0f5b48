"""Texts of whole lines: those of a plain text file, or of the text that is taken out of a page."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from nanochat.data.files.bad_rows import RowProblems
from nanochat.data.files.cursors import Cursor
from nanochat.data.files.formats.streams import encoding_problem, raw_lines, read_whole

_MAX_PAGE_BYTES = 1 << 26


def plain_texts(path: Path, cursor: Cursor, max_chars: int, problems: RowProblems) -> Iterator[tuple[str, Cursor]]:
    """Yield the texts of a text file, as `readers.read_texts` does. A file that is not text is one bad row."""
    offset, number, bad = cursor
    if not offset and (problem := encoding_problem(path)) is not None:
        if not number:
            problems.add_bad_file(f"{path}: {problem}", bad + 1)
            yield "", (0, 1, bad + 1)
        return
    yield from _line_texts(path, raw_lines(path, offset), cursor, max_chars, problems)


def page_texts(
    path: Path, text_of: Callable[[bytes], str], cursor: Cursor, max_chars: int, problems: RowProblems
) -> Iterator[tuple[str, Cursor]]:
    """Yield the text that `text_of` finds in a page, as that of a text file.

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
            problems.add_bad(f"{path}:{number}: {problem}", bad)
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
        return "", f"not UTF-8 at byte {error.start + 1} of the line: save the file as UTF-8"
