"""A recipe of a tiny model, to which tests add a sweep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nanochat.recipe.load import LoadedRecipe, load_recipe

RECIPE = """\
nanochat: 1
name: grid
seed: 7
vars: {steps: 4, unused: 1}
sources:
  text: {path: text.txt, max_document_chars: 40, validation: {hash_frac: 0.5}}
tokenizer: {source: text, vocab_size: 300}
model: {n_layer: 1, n_embd: 32, n_head: 1, sequence_len: 32, window_pattern: L}
pretrain:
  data: {text: {}}
  horizon: {steps: "${vars.steps}"}
  tokens_per_step: 64
base_eval:
  suites:
    bpb: {task: bpb, tokens: 64}
tracking: {kind: none}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the text that the recipe reads."""
    (tmp_path / "text.txt").write_text("".join(f"hello world {i}\n" for i in range(50)))
    return tmp_path


@pytest.fixture
def load(folder: Path) -> Callable[..., LoadedRecipe]:
    """Return a function that loads the recipe with a section `sweep`, given as indented lines."""

    def _load(sweep: str, *overrides: str) -> LoadedRecipe:
        path = folder / "grid.yaml"
        path.write_text(f"{RECIPE}sweep:\n{sweep}")
        return load_recipe(path, overrides)

    return _load
