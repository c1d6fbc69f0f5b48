"""Checks the encoding of a text file by its beginning, and says what to do if it is neither UTF-8 nor UTF-16."""

from __future__ import annotations

from pathlib import Path

from nanochat.data.files.formats.streams import head_of, raw_lines
from nanochat.data.files.formats.utf16 import is_utf32, utf16_encoding
from nanochat.plurals import several

_SNIFFED_BYTES = 1 << 23
_FEW_LINES, _SMALL_SHARE, _DAMAGED_SHARE = 10, 0.1, 0.01
"""A file is only damaged if at most `_DAMAGED_SHARE` of its lines are not UTF-8, or at most `_FEW_LINES` and
`_SMALL_SHARE`. With more such lines, it is in another encoding."""


def encoding_problem(path: Path) -> str | None:
    """Return why a file is not UTF-8 or UTF-16 text, judged by its first bytes, or None.

    Without this check, UTF-16 text without a mark would be read as UTF-8 text full of NUL characters.

    Raises:
        PreflightError: the file cannot be opened.
        StageError: the file is compressed, and damaged or cut off.
    """
    head = head_of(path)
    if is_utf32(head):
        return "UTF-32 text: save it as UTF-8"
    if b"\0" in head and utf16_encoding(head) is None:
        return "not text, or UTF-16 text without a mark, because it has NUL bytes: save it as UTF-8"
    return None


def foreign_encoding(path: Path) -> str | None:
    """Return the place and the reason if a text file is in another encoding than UTF-8 or UTF-16, else None.

    It is in another encoding if many of its first lines are not UTF-8, and no other line has characters outside ASCII.
    A few such lines are bad lines of a damaged file.

    Raises:
        PreflightError: the file cannot be opened.
        StageError: the file is compressed, and damaged or cut off.
    """
    first, bad, lines, read_bytes = "", 0, 0, 0
    for line in raw_lines(path, 0) if utf16_encoding(head_of(path)) is None else ():
        lines += 1
        if not line.isascii():
            try:
                line.decode()
            except UnicodeDecodeError as error:
                first, bad = first or f"{path}:{lines}: {not_utf8(error)}", bad + 1
            else:
                return None
        read_bytes += len(line)
        if read_bytes > _SNIFFED_BYTES:
            break
    if bad <= min(_FEW_LINES, lines * _SMALL_SHARE) or bad <= lines * _DAMAGED_SHARE:
        return None
    return f"{first}; {several(bad, 'line')} {'is' if bad == 1 else 'are'} like that"


def not_utf8(error: UnicodeDecodeError) -> str:
    """Return what is wrong with a line, and what to do about it."""
    return (
        f"not UTF-8 at byte {error.start + 1} of the line (0x{error.object[error.start]:02X}): save the file as UTF-8, "
        "for example with `iconv -f WINDOWS-1252 -t UTF-8`"
    )
