from __future__ import annotations

import hashlib
import importlib.util

import pytest

from nanochat.data.places.builtin.words import builtin_words, split_words, word_list
from nanochat.errors import PreflightError


def test_builtin_words_are_sorted_and_of_lower_case_letters():
    words = word_list()
    assert words == builtin_words()
    assert list(words) == sorted(set(words))
    assert all(word.isascii() and word.isalpha() and word.islower() for word in words)
    assert {"apple", "quick", "jump"} <= set(words)
    assert 3000 < len(words) < 20_000


def test_split_words_holds_out_words_by_their_hash():
    """The test computes the rule itself: sha256 of the word, first 7 bytes as a fraction, below 0.1."""
    words = word_list()
    train, held_out = split_words(words)
    assert sorted(train + held_out) == list(words)
    by_hand = [w for w in words if int.from_bytes(hashlib.sha256(w.encode()).digest()[:7], "big") / 2**56 < 0.1]
    assert list(held_out) == by_hand
    assert 0.08 < len(held_out) / len(words) < 0.12


def test_split_words_does_not_depend_on_the_other_words():
    train, held_out = split_words(word_list())
    fewer = tuple(word for word in word_list() if word < "m")
    assert set(split_words(fewer)[0]) <= set(train)
    assert set(split_words(fewer)[1]) <= set(held_out)


def test_word_list_accepts_any_line_ends(files):
    path = files.text("words.txt", b"pear\r\nfig\r\n\r\nO'Clock\r\nfig\nApple\n")
    assert word_list([path]) == ("fig", "pear")


def test_word_list_names_a_missing_file_and_a_file_without_words(files):
    path = files.text("words.txt", "ONE\nTWO\n")
    with pytest.raises(PreflightError, match=r"words\.txt: no word of lower-case letters"):
        word_list([path])
    with pytest.raises(PreflightError, match=r"gone\.txt: cannot be read"):
        word_list([path.with_name("gone.txt")])


def test_builtin_words_name_a_missing_package(monkeypatch):
    builtin_words.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(PreflightError, match="pip install wonderwords"):
        builtin_words()
