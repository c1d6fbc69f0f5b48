"""Every broken recipe in `broken/` ends in exactly the text beside it, which was read and judged by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanochat.errors import RecipeError
from nanochat.recipe.load import load_recipe

BROKEN = Path(__file__).parent / "broken"
NAMES = sorted(path.stem for path in BROKEN.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_a_broken_recipe_is_explained_with_line_column_and_suggestion(name, golden, monkeypatch):
    """The whole text is golden, so a changed message is changed on purpose."""
    monkeypatch.chdir(BROKEN)
    args = Path(f"{name}.args")
    overrides = args.read_text(encoding="utf-8").splitlines() if args.exists() else []
    with pytest.raises(RecipeError) as caught:
        load_recipe(Path(f"{name}.yaml"), overrides)
    golden(str(caught.value) + "\n", Path(f"{name}.txt"))


def test_there_is_a_golden_text_for_each_broken_recipe_and_no_other():
    """A recipe that was renamed leaves nothing behind."""
    assert len(NAMES) >= 30
    assert sorted(path.stem for path in BROKEN.glob("*.txt")) == NAMES
