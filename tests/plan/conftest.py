from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import PreflightError, RecipeError
from nanochat.plan.compile import compile_plan
from nanochat.plan.plan import Plan
from nanochat.recipe.load import LoadedRecipe, load_recipe

BASE = """\
nanochat: 1
name: base
description: A recipe with every stage.
seed: 7
sources:
  stdlib: {builtin: python-stdlib}
  words: {builtin: spelling}
tokenizer: {source: stdlib, vocab_size: 2048}
model: {n_layer: 4, n_embd: 128, n_head: 2, sequence_len: 256}
pretrain:
  data:
    stdlib: {}
  horizon: {tokens: 1.5M}
  tokens_per_step: 4096
base_eval:
  suites:
    bpb: {task: bpb, tokens: 131_072}
  samples: ["import "]
sft:
  data:
    spelling: {task: simple_spelling, source: words, max_examples: 1000}
  horizon: {tokens: 400_000}
chat_eval:
  suites:
    spelling: {task: simple_spelling, source: words, max_problems: 20}
expect:
  base_eval.bpb: "< 2"
"""

Load = Callable[..., LoadedRecipe]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Return a function that loads the base recipe, or another text, under overrides."""

    def _load(*overrides: str, text: str = BASE) -> LoadedRecipe:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return load_recipe(path, overrides)

    return _load


@pytest.fixture
def compiled(load: Load) -> Callable[..., Plan]:
    """Return a function that compiles the base recipe, or another text, under overrides, with made-up digests."""

    def _compile(*overrides: str, text: str = BASE, **known: Any) -> Plan:
        return compile_plan(load(*overrides, text=text), digests=fake_digest, **known)

    return _compile


def fake_digest(source: SourceSpec) -> str:
    if source.name == "gone":
        raise PreflightError(f"source `{source.name}` is not here")
    return f"digest of {source.name}"


@pytest.fixture
def refusal(load: Load) -> Callable[[str, str], str]:
    """Return a function that compiles the base recipe with one piece of text replaced, and returns the error's text."""

    def _refusal(old: str, new: str) -> str:
        assert old in BASE, f"the base recipe has no {old!r}"
        loaded = load(text=BASE.replace(old, new))
        with pytest.raises(RecipeError) as caught:
            compile_plan(loaded)
        return str(caught.value).replace(f"{loaded.path.parent}/", "")

    return _refusal
