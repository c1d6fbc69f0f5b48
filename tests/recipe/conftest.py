"""Recipes written for one test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

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
    """A valid recipe, to which a test adds lines."""
    return BODY


@pytest.fixture
def write(tmp_path) -> Callable[..., Path]:
    """Writes files below a temporary folder; returns the path of the last one."""

    def write_all(**files: str) -> Path:
        path = tmp_path
        for name, content in files.items():
            path = tmp_path / (name.replace("__", "/") + ".yaml")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        return path

    return write_all


@pytest.fixture
def codes() -> Callable[[pytest.ExceptionInfo[BaseException]], list[str]]:
    """Returns the codes of the findings in a caught error, in order."""
    return lambda caught: [found.code for found in caught.value.diagnostics]
