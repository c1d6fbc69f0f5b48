"""This project's README and documentation train offline, with the command that the README shows."""

from __future__ import annotations

import re
import shlex
import socket
from pathlib import Path

import pytest

from nanochat.cli.run import main
from nanochat.data.source_splits import document_files
from nanochat.plan.compile import compile_plan
from nanochat.recipe.load import load_recipe

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_project_trains_on_its_own_documentation_with_the_command_in_the_readme(tmp_path, monkeypatch, capfd):
    """The run ends with 0 only if the model meets the recipe's expectation."""
    (command,) = re.findall(r"^nanochat-run (own_docs .*)$", (ROOT / "README.md").read_text(), re.M)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    monkeypatch.chdir(ROOT)

    def refuse(self, address):
        raise AssertionError(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert main([*shlex.split(command), "--set", "tracking.kind=none"]) == 0
    assert re.search(r"expected base_eval\.bpb < [\d.]+: [\d.]+, met", capfd.readouterr().out)


def test_the_recipe_reads_every_page_of_the_documentation():
    (stage, *_) = compile_plan(load_recipe(ROOT / "recipes" / "own_docs.yaml")).stages
    used = {path.resolve() for path in document_files(stage.sources[0], base=ROOT).choice.paths}
    pages = {
        *ROOT.glob("*.md"),
        *ROOT.glob("nanochat/**/*.md"),
        *ROOT.glob("schemas/*.md"),
        *ROOT.glob("recipes/*.md"),
        *ROOT.glob("tests/**/*.md"),
    }
    assert used == {page.resolve() for page in pages} and ROOT / "README.md" in used
