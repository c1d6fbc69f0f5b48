"""Tables in markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_RULES = {"l": "---", "r": "---:"}


def markdown_table(columns: Sequence[str], alignment: str, rows: Iterable[Sequence[str]]) -> str:
    """Return a table. `alignment` has a letter for each column: `l` for left or `r` for right."""
    rule = "|".join(_RULES[letter] for letter in alignment)
    return "\n".join([f"| {' | '.join(columns)} |", f"|{rule}|", *(f"| {' | '.join(cells)} |" for cells in rows)])
