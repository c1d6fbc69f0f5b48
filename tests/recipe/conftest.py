"""Fixtures that write recipes for a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nanochat.recipe.load import load_recipe
from nanochat.recipe.parsing.diagnostics import LocatedRecipeError

BODY = """\
nanochat: 1
name: tiny
sources:
  text: {path: a.txt}
tokenizer: {source: text}
model: {depth: 2}
pretrain:
  data: {text: {}}
"""


@pytest.fixture
def body() -> str:
    """A valid recipe, to which tests add lines."""
    return BODY


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes files into a temporary folder and returns the path of the last one."""

    def write_all(**files: str) -> Path:
        path = tmp_path
        for name, content in files.items():
            path = tmp_path / (name.replace("__", "/") + ".yaml")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        return path

    return write_all


@pytest.fixture
def codes() -> Callable[..., list[str]]:
    """Return a function that loads a recipe which must be refused, and returns the codes of its errors in order."""

    def load_refused(path: Path) -> list[str]:
        with pytest.raises(LocatedRecipeError) as caught:
            load_recipe(path)
        return [diagnostic.code for diagnostic in caught.value.diagnostics]

    return load_refused
