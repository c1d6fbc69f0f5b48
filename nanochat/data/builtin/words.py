"""Words to spell: the built-in list, or one's own; split by hash into words to train on and words held out."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from nanochat.data.splits import is_held_out
from nanochat.errors import PreflightError

HELD_OUT_FRAC = 0.1

# Of the word lists in the package `wonderwords` (MIT); its list of profanities is left out.
_LISTS = ("nounlist.txt", "adjectivelist.txt", "verblist.txt")
_WORD = re.compile("[a-z]+")


def builtin_words() -> tuple[str, ...]:
    """Return English nouns, adjectives and verbs, a-z only, sorted.

    Raises:
        PreflightError: the package that carries them is not installed.
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
    """Return the built-in words, or those of `files` (one a line, any line ends); a-z only, sorted, each once.

    Raises:
        PreflightError: a file is missing, or there is no such word in it.
    """
    if not files:
        return builtin_words()
    found: list[str] = []
    for path in files:
        try:
            own = _clean(path.read_text("utf-8", errors="replace").splitlines())
        except OSError as error:
            raise PreflightError(f"{path}: cannot be read ({error.strerror})") from error
        if not own:
            raise PreflightError(f"{path}: no word of lower-case letters a-z; expected one word a line")
        found += own
    return _clean(found)


def split_words(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the words to train on and those held out; a word's side hangs on the word alone."""
    held_out = tuple(word for word in words if is_held_out(word, HELD_OUT_FRAC))
    return tuple(word for word in words if not is_held_out(word, HELD_OUT_FRAC)), held_out


def _clean(lines: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({word for word in map(str.strip, lines) if _WORD.fullmatch(word)}))
