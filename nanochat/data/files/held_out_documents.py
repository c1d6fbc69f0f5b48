"""Cuts texts into documents, and decides by a hash which documents of a source are held out for validation.

The hash of each document decides. Of any source that has two different documents, at least one is held out and at least
one is trained on. If `hash_frac` gives no such division, the limit for the hash moves to the nearest value that does. A
source of one document is cut at line ends into smaller ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from nanochat.data.splits import hash_share

_PIECES_OF_A_SINGLE_TEXT = 10


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


@dataclass(frozen=True)
class HeldOutRule:
    """How texts are cut into documents, and the limit below which the hash of a document holds it out."""

    limit: float
    cuts_lines: bool = False
    """Whether documents are also cut at line ends, because the source has only one."""
    only_line_chars: int = 0
    """The length of the source's only line, if there is nothing else. It is trained on."""
    are_all_equal: bool = False
    """Whether the source has several documents, all with the same text."""

    def documents(self, text: str, max_chars: int | None) -> Iterator[tuple[str, bool]]:
        """Yield the documents of a text, and whether each is held out."""
        for piece in [text] if max_chars is None else chunk_text(text, max_chars):
            if not self.cuts_lines:
                yield piece, hash_share(piece) < self.limit
                continue
            for i, lines in enumerate(cut_lines(piece, _PIECES_OF_A_SINGLE_TEXT)):
                # The number makes the hashes of equal lines differ.
                yield lines, hash_share(f"{i}\n{lines}") < self.limit


def choose_rule(texts: Iterable[tuple[str, int | None]], held_out_frac: float) -> HeldOutRule:
    """Return the rule for a source, given its texts and the most characters that a document of each may have.

    Reads no further than to the first document of each kind.
    """
    rule = HeldOutRule(held_out_frac)
    least, most, first, count = math.inf, -math.inf, "", 0
    for text, max_chars in texts:
        for document, _ in rule.documents(text, max_chars):
            first = first or document
            count += 1
            share = hash_share(document)
            least, most = min(least, share), max(most, share)
            if least < held_out_frac <= most:
                return rule
    if least < most:
        return HeldOutRule(dividing_limit(held_out_frac, least, most))
    return replace(_rule_for_lines(first, held_out_frac), are_all_equal=count > 1)


def _rule_for_lines(document: str, held_out_frac: float) -> HeldOutRule:
    """Return the rule for a source of one document."""
    pieces = cut_lines(document, _PIECES_OF_A_SINGLE_TEXT)
    if len(pieces) < 2:
        return HeldOutRule(0.0, only_line_chars=len(document))
    shares = [hash_share(f"{i}\n{lines}") for i, lines in enumerate(pieces)]
    return HeldOutRule(dividing_limit(held_out_frac, min(shares), max(shares)), cuts_lines=True)


def dividing_limit(limit: float, least: float, most: float) -> float:
    """Return the limit closest to `limit` that has a hash on either side."""
    return min(max(limit, math.nextafter(least, math.inf)), most)
