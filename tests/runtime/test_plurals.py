"""Counts and their nouns agree."""

from __future__ import annotations

import pytest

from nanochat.plurals import several


@pytest.mark.parametrize(
    ("count", "words", "shown"),
    [
        (0, ("step",), "0 steps"),
        (1, ("step",), "1 step"),
        (1200, ("step",), "1,200 steps"),
        (1, ("entry", "entries"), "1 entry"),
        (2, ("entry", "entries"), "2 entries"),
        (1.0, ("epoch",), "1 epoch"),
        (0.5, ("epoch",), "0.5 epochs"),
    ],
)
def test_several_agrees_with_the_count(count, words, shown):
    assert several(count, *words) == shown
