"""Cutting of long texts into documents at line ends."""

from __future__ import annotations


def chunk_text(text: str, max_chars: int) -> list[str]:
    """Return `text` in pieces of at most `max_chars` characters that joined give it back.

    Pieces end at line ends; a line longer than `max_chars` is cut inside.
    """
    pieces: list[str] = []
    start = 0
    while len(text) - start > max_chars:
        end = text.rfind("\n", start, start + max_chars) + 1
        if end <= start:
            end = start + max_chars
        pieces.append(text[start:end])
        start = end
    if start < len(text):
        pieces.append(text[start:])
    return pieces
