"""Every recipe in `broken/` is refused with exactly the text in the file next to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanochat.errors import RecipeError
from nanochat.recipe.load import load_recipe

BROKEN = Path(__file__).parent / "broken"
NAMES = sorted(path.stem for path in BROKEN.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_a_broken_recipe_is_refused_with_line_column_and_suggestion(name, check_golden, monkeypatch):
    """Read the difference after `pytest --update-golden`, which accepts every change of a message."""
    monkeypatch.chdir(BROKEN)
    args = Path(f"{name}.args")
    overrides = args.read_text(encoding="utf-8").splitlines() if args.exists() else []
    with pytest.raises(RecipeError) as caught:
        load_recipe(Path(f"{name}.yaml"), overrides)
    check_golden(str(caught.value) + "\n", Path(f"{name}.txt"))


def test_every_broken_recipe_has_a_golden_text_and_every_text_a_recipe():
    assert len(NAMES) >= 30
    assert sorted(path.stem for path in BROKEN.glob("*.txt")) == NAMES
