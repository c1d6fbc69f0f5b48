"""The reference page describes every section and field of the schema."""

from __future__ import annotations

from nanochat.recipe.schema.recipe import Recipe
from nanochat.recipe.schema_docs import reference_text


def test_reference_has_a_table_for_every_section_and_a_meaning_for_every_field():
    text = reference_text()
    assert "| `vocab_size` | a whole number from 300 to 1000000 | `32768` |" in text
    assert "\n## `pretrain.horizon`\n" in text
    assert "\n## `base_eval.suites.NAME` with `task: bpb`\n" in text
    top_level = text.split("\n## ")[1]
    for name in Recipe.model_fields:
        assert f"\n| `{name}` |" in top_level
    assert "|  |\n" not in text, "a field has no description"
