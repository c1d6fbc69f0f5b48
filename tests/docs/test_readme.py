"""The README keeps its promises: its recipes are valid, its error message and its links are real.

Its Python runs in `tests/e2e`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nanochat.cli.run import main

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PAGES = (ROOT / "README.md", *ROOT.glob("[a-z]*/README.md"), *ROOT.glob("tests/*/README.md"))
MAX_BYTES = 16_000


def code_blocks(language: str) -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text for name, text in blocks if name == language]


def write_recipe(folder: Path, text: str) -> Path:
    """Put a recipe of the README beside the shipped recipes' copies, so that `extends` finds them."""
    for recipe in ROOT.glob("recipes/*.yaml"):
        (folder / recipe.name).write_text(recipe.read_text())
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path


def test_readme_is_short():
    assert len(README.encode()) < MAX_BYTES


@pytest.mark.parametrize("number", range(2))
def test_readme_recipes_are_valid(number, tmp_path):
    assert main(["check", str(write_recipe(tmp_path, code_blocks("yaml")[number]))]) == 0


def test_readme_recipe_takes_twelve_lines():
    assert len(code_blocks("yaml")[0].splitlines()) == 12


def test_readme_error_message_is_the_one_printed(tmp_path, monkeypatch, capsys):
    write_recipe(tmp_path, code_blocks("yaml")[0].replace("n_layer:", "n_layers:"))
    monkeypatch.chdir(tmp_path)
    assert main(["check", "tiny.yaml"]) == 2
    shown = next(block for block in code_blocks("") if block.startswith("error["))
    assert shown.strip() in capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_to_files(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    missing = [target for target in targets if target and "://" not in target and not (page.parent / target).exists()]
    assert not missing
