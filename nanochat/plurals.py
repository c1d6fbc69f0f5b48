"""Writes numbers with their nouns, in the singular or plural, and shortens lists of names and long texts."""

from __future__ import annotations

from collections.abc import Iterable

_MAX_NAME_CHARS = 80


def several(count: float, noun: str, plural: str = "") -> str:
    """Return `1 step`, `1,200 steps`, `1.5 epochs`. `plural` is needed for a noun that takes more than an `s`."""
    shown = f"{count:,}" if isinstance(count, int) else f"{count:g}"
    return f"{shown} {noun if count == 1 else plural or noun + 's'}"


def list_names(names: Iterable[str], *, most: int = 3) -> str:
    """Return the first names on one line, with the number of the others: `a.md, b.md, c.md and 7 more`.

    The middle of a very long name is left out.
    """
    known = [*names]
    more = f" and {len(known) - most:,} more" if len(known) > most else ""
    return ", ".join(without_middle(name, _MAX_NAME_CHARS) for name in known[:most]) + more


def without_middle(text: str, most_chars: int) -> str:
    """Return a text, with an ellipsis in place of its middle if it is longer."""
    half = most_chars // 2
    return text if len(text) <= most_chars else f"{text[:half]}…{text[-half:]}"
