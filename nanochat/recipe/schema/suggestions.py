"""Suggestions for mistyped words ("did you mean ...?") and for fields in the wrong section."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from difflib import SequenceMatcher

from nanochat.recipe.schema.introspection import section_paths

_MIN_SIMILARITY = 0.62
_MAX_WORD_CHARS = 64
_MAX_SHOWN_NAMES = 24
_OTHER_WORDS = {"cuda": "gpu", "metal": "gpu", "mps": "gpu"}
"""What other programs call a choice of ours."""


def closest(word: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate whose whole or beginning is most similar to `word`, or None if none is similar enough."""
    if len(word) > _MAX_WORD_CHARS:
        return None
    scored = [(_similarity(word.lower(), name.lower()), name) for name in sorted(candidates)]
    best = max(scored, key=lambda pair: pair[0], default=(0.0, ""))
    return best[1] if best[0] >= _MIN_SIMILARITY else None


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """Return a help text that suggests the most similar candidate, if any, and lists the candidates."""
    names = sorted(candidates)
    ours = _OTHER_WORDS.get(word.lower())
    likely = ours if ours in names else closest(word, names)
    shown = ", ".join(names[:_MAX_SHOWN_NAMES]) + (", ..." if len(names) > _MAX_SHOWN_NAMES else "")
    allowed = f"allowed: {shown}" if names else ""
    return f"did you mean `{likely}`? {allowed}".strip() if likely else allowed


def unknown_field_help(name: str, path: tuple[str, ...], allowed: Iterable[str]) -> str:
    """Return the help text for a field `name` that the section at `path` does not have."""
    names = sorted(allowed)
    if closest(name, names) is None and (home := _home(name, path)):
        return f"`{name}` belongs in {home}; allowed here: {', '.join(names)}"
    return did_you_mean(name, names)


def _home(name: str, path: tuple[str, ...]) -> str:
    """Return the sections that have a field `name`: the nearest to `path`, and at most two."""
    if len(name) > _MAX_WORD_CHARS:
        return ""

    def distance(place: tuple[str, ...]) -> tuple[int, int]:
        shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(path, place, strict=False)))
        return (-shared, len(place))

    homes = sorted(
        {place for place in section_paths().get(name, ()) if place != path}, key=lambda place: (distance(place), place)
    )
    nearest = [place for place in homes if distance(place)[0] == distance(homes[0])[0]][:2]
    return " or ".join(f"`{'.'.join(place)}`" if place else "the top level" for place in nearest)


def _similarity(word: str, candidate: str) -> float:
    whole = SequenceMatcher(None, word, candidate).ratio()
    if len(word) < 4:
        return whole
    return max(whole, 0.95 * SequenceMatcher(None, word, candidate[: len(word)]).ratio())
