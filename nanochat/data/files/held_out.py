"""Which documents of a source are held out for validation, if a hash of their text decides.

Texts are cut into documents first, and the hash of each document decides. Of any source that has two different
documents, at least one is held out and at least one is trained on. If `hash_frac` gives no such division, the limit
for the hash moves to the nearest value that does. A source of one document is cut at line ends into smaller ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from nanochat.data.files.chunking import chunk_text, cut_lines
from nanochat.data.splits import hash_share

_PIECES_OF_A_SINGLE_TEXT = 10


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
