"""The README's recipe reference says what the schema says."""

from __future__ import annotations

from pathlib import Path

from nanochat.recipe.schema.recipe import Recipe
from nanochat.recipe.schema_docs import BEGIN, END, reference_is_fresh, reference_text, update_reference

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_holds_the_reference_of_this_schema():
    """Whoever changes a field runs `just schemas`."""
    assert reference_is_fresh(README), "run `just schemas`"


def test_every_section_has_its_table_and_every_field_its_meaning():
    """Fields show type, default and description, at the path where a user writes them."""
    text = reference_text()
    assert "| `vocab_size` | a whole number from 300 to 1000000 | `32768` |" in text
    assert "#### `pretrain.horizon`" in text
    assert "#### `base_eval.suites.NAME` with `task: bpb`" in text
    assert text.count("\n| `") == sum(block.count("\n| `") for block in text.split("#### "))
    for name in Recipe.model_fields:
        assert f"\n| `{name}` |" in text.split("#### ")[1]
    assert "|  |\n" not in text, "a field has no description"


def test_updating_replaces_only_what_is_between_the_marks(tmp_path):
    """The rest of the README stays as it was."""
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nSTALE\n{END}\nafter\n")
    assert not reference_is_fresh(readme)
    update_reference(readme)
    assert reference_is_fresh(readme)
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "STALE" not in text
