"""Counts over the texts or conversations of a source: sizes, scripts and duplicates."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

from nanochat.data.files.digests import SeenTexts

QUANTILES = (0.0, 0.1, 0.5, 0.9, 0.99, 1.0)
_SHOWN_SCRIPTS = 4
_SCRIPT_NAMES = {"CJK": "Han", "IDEOGRAPHIC": "Han"}


@dataclass
class Survey:
    """What was found in the texts that were added.

    Attributes:
        lengths: the characters of each text.
        token_lengths: the tokens of each text; empty without a tokenizer.
        size_bytes: the size of all texts in UTF-8.
        characters: how often each character occurs.
    """

    lengths: list[int] = field(default_factory=list)
    token_lengths: list[int] = field(default_factory=list)
    size_bytes: int = 0
    characters: Counter[str] = field(default_factory=Counter)
    _seen: SeenTexts = field(default_factory=SeenTexts)

    @property
    def duplicates(self) -> int:
        """The number of texts that equal an earlier one."""
        return self._seen.duplicates

    def add(self, text: str, *, identity: str | None = None) -> None:
        """Count a text, but not its tokens. It is a duplicate if its identity (default: the text) was added before."""
        self._seen.add(identity or text)
        self.lengths.append(len(text))
        self.size_bytes += len(text.encode("utf-8", "surrogatepass"))
        self.characters.update(text)

    def scripts(self) -> list[tuple[str, float]]:
        """Return the scripts of the letters with their shares, the most frequent ones first."""
        counts: Counter[str] = Counter()
        for character, count in self.characters.items():
            if character.isalpha():
                counts[_script(character)] += count
        return [(name, count / counts.total()) for name, count in counts.most_common(_SHOWN_SCRIPTS)]


def quantiles(values: Sequence[int]) -> list[int]:
    """Return the values at `QUANTILES`: the least value, ..., the median, ..., the largest one."""
    ordered = sorted(values)
    return [ordered[round(share * (len(ordered) - 1))] for share in QUANTILES]


@cache
def _script(letter: str) -> str:
    """Return the script of a letter, which is the first word of its name in Unicode."""
    word = unicodedata.name(letter, "other").split()[0].partition("-")[0]
    return _SCRIPT_NAMES.get(word, word.capitalize())
