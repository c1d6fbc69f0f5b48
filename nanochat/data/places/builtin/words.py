"""Words to spell, built in or from files, split by hash into training words and held-out words."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from nanochat.data.splits import is_held_out
from nanochat.errors import PreflightError

HELD_OUT_FRAC = 0.1

# Word lists in the package `wonderwords` (MIT). Its list of profanities is not used.
_LISTS = ("nounlist.txt", "adjectivelist.txt", "verblist.txt")
_WORD = re.compile("[a-z]+")


@functools.cache
def builtin_words() -> tuple[str, ...]:
    """Return English nouns, adjectives and verbs, a-z only, sorted.

    Raises:
        PreflightError: the package `wonderwords`, which has the lists, is not installed.
    """
    package = importlib.util.find_spec("wonderwords")
    if package is None or not package.submodule_search_locations:
        raise PreflightError("`builtin: spelling` needs the package `wonderwords`; pip install wonderwords")
    folder = Path(package.submodule_search_locations[0]) / "assets"
    try:
        return _clean(line for name in _LISTS for line in (folder / name).read_text("utf-8").splitlines())
    except OSError as error:
        raise PreflightError(
            f"`builtin: spelling`: {error.filename}: {error.strerror}; reinstall wonderwords"
        ) from error


def word_list(files: Sequence[Path] = ()) -> tuple[str, ...]:
    """Return the built-in words, or those of `files` (one per line), sorted and without duplicates.

    Lines that are not words of lower-case letters a-z are ignored.

    Raises:
        PreflightError: a file is missing or has no word.
    """
    if not files:
        return builtin_words()
    words: list[str] = []
    for path in files:
        try:
            in_file = _clean(path.read_text("utf-8", errors="replace").splitlines())
        except OSError as error:
            raise PreflightError(f"{path}: cannot be read ({error.strerror})") from error
        if not in_file:
            raise PreflightError(f"{path}: no word of lower-case letters a-z; expected one word per line")
        words += in_file
    return _clean(words)


@functools.lru_cache(maxsize=2)
def split_words(words: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the training words and the held-out words. Which of them a word is depends on the word alone."""
    held_out = {word for word in words if is_held_out(word, HELD_OUT_FRAC)}
    return tuple(word for word in words if word not in held_out), tuple(word for word in words if word in held_out)


def _clean(lines: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({word for word in map(str.strip, lines) if _WORD.fullmatch(word)}))
