"""Names a number of things, with the noun in singular or plural."""

from __future__ import annotations


def several(count: float, noun: str, plural: str = "") -> str:
    """Return `1 step`, `1,200 steps`, `1.5 epochs`. `plural` is needed for a noun that takes more than an `s`."""
    shown = f"{count:,}" if isinstance(count, int) else f"{count:g}"
    return f"{shown} {noun if count == 1 else plural or noun + 's'}"
