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
