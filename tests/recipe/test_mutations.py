"""Shipped recipes with random mutations are valid or refused with a place. `just fuzz` tries a thousand of them."""

from __future__ import annotations

import runpy
from pathlib import Path

MUTATE = Path(__file__).parents[1] / "torture" / "mutate.py"


def test_fifty_mutated_recipes_are_valid_or_refused_with_a_place(tmp_path):
    """Each ends without a traceback, with exit code 0 or 2, and without hanging."""
    counts, wrong = runpy.run_path(str(MUTATE))["sweep"](50, 7, tmp_path)
    assert [(mutant.history, verdict) for mutant, verdict, _ in wrong] == []
    assert set(counts) == {"valid", "refused"}
