"""The README keeps its promises: its recipes are valid, and its error message is real. All pages link to what exists.

The README's Python runs in `tests/e2e`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nanochat.cli.run import main

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PAGES = tuple(
    page for pattern in ("*.md", "[a-z]*/*.md", "tests/*/*.md", "tests/*/*/*.md") for page in ROOT.glob(pattern)
)
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


def without_code(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return the names that GitHub gives to the headings: lower case, without punctuation, `-` for each space."""
    headings = re.findall(r"^#+ (.*)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Return the links of a page to a file or to a heading that does not exist; addresses are not opened."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page)):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if "://" not in link and not (target.exists() and (not anchor or anchor in anchors(target))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    assert not broken_links(page)


def test_broken_links_are_found(tmp_path):
    (tmp_path / "other.md").write_text("# Two GPUs, `one` host\n```\n# no heading\n```\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Top\n[a](#top) [b](other.md) [c](other.md#two-gpus-one-host) [d](https://host/none)\n"
        "[e](#bottom) [f](none.md) [g](other.md#no-heading)\n"
    )
    assert broken_links(page) == ["#bottom", "none.md", "other.md#no-heading"]
