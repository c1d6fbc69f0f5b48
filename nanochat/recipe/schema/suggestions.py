"""Did you mean ...? Likely words for a mistyped one, and where a misplaced field belongs."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

from nanochat.recipe.schema.introspection import places

_ENOUGH = 0.62
_LONGEST_WORD = 64
_MOST_NAMES = 24


def closest(word: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate most like `word`, also by its beginning; None where none is like it."""
    if len(word) > _LONGEST_WORD:
        return None
    scored = [(_likeness(word.lower(), each.lower()), each) for each in sorted(candidates)]
    best = max(scored, key=lambda pair: pair[0], default=(0.0, ""))
    return best[1] if best[0] >= _ENOUGH else None


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """Return a help text: the likely candidate where there is one, and all that are allowed."""
    names = sorted(candidates)
    likely = closest(word, names)
    shown = ", ".join(names[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")
    allowed = f"allowed: {shown}" if names else ""
    return f"did you mean `{likely}`? {allowed}".strip() if likely else allowed


def unknown_field_help(name: str, path: tuple[str, ...], allowed: Iterable[str]) -> str:
    """Return the help for field `name` that the section at `path` does not have."""
    names = sorted(allowed)
    if closest(name, names) is None and (home := _home(name, path)):
        return f"`{name}` belongs in {home}; allowed here: {', '.join(names)}"
    return did_you_mean(name, names)


def _home(name: str, path: tuple[str, ...]) -> str:
    """Return the sections that have a field `name`, nearest to `path` first, two at most."""
    if len(name) > _LONGEST_WORD:
        return ""

    def distance(place: tuple[str, ...]) -> tuple[int, int]:
        shared = 0
        for mine, its in zip(path, place, strict=False):
            if mine != its:
                break
            shared += 1
        return (-shared, len(place))

    found = sorted((place for place in places(name) if place != path), key=lambda place: (distance(place), place))
    nearest = [place for place in found if distance(place)[0] == distance(found[0])[0]][:2]
    return " or ".join(f"`{'.'.join(place)}`" if place else "the top level" for place in nearest)


def _likeness(word: str, candidate: str) -> float:
    whole = SequenceMatcher(None, word, candidate).ratio()
    if len(word) < 4:
        return whole
    return max(whole, 0.95 * SequenceMatcher(None, word, candidate[: len(word)]).ratio())
