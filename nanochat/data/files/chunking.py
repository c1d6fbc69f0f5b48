"""Splitting long texts into documents at line ends."""

from __future__ import annotations


def chunk_text(text: str, max_chars: int) -> list[str]:
    """Return consecutive chunks of `text`, each of at most `max_chars` characters; joined they are `text` again.

    Chunks end at line ends; only a line longer than `max_chars` is split inside.
    """
    chunks: list[str] = []
    start = 0
    while len(text) - start > max_chars:
        end = text.rfind("\n", start, start + max_chars) + 1
        if end <= start:
            end = start + max_chars
        chunks.append(text[start:end])
        start = end
    if start < len(text):
        chunks.append(text[start:])
    return chunks


def cut_lines(text: str, count: int) -> list[str]:
    """Return `text` cut at line ends into about `count` parts of about equal length, none of them blank.

    Any text with two lines gives at least two parts.
    """
    lines = text.splitlines(keepends=True)
    least = -(-len(text) // count)
    parts = _group_lines(lines, least)
    while len(parts) == 1 and least > 1:  # a long line at the end may hold more than all the others
        least //= 2
        parts = _group_lines(lines, least)
    return parts


def _group_lines(lines: list[str], least_chars: int) -> list[str]:
    """Return the lines joined to parts of at least `least_chars` characters, except for the last part."""
    parts: list[str] = []
    held: list[str] = []
    chars = 0
    for line in lines:
        held.append(line)
        chars += len(line)
        if chars >= least_chars and (part := "".join(held)).strip():
            parts.append(part)
            held, chars = [], 0
    rest = "".join(held)
    if rest.strip() or not parts:
        parts.append(rest)
    else:
        parts[-1] += rest
    return parts
