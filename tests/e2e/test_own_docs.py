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
    """The run is shortened to three steps, so its expectation is removed."""
    (command,) = re.findall(r"^nanochat-run (own_docs .*)$", (ROOT / "README.md").read_text(), re.M)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    monkeypatch.chdir(ROOT)

    def refuse(self, address):
        raise AssertionError(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    short = ["pretrain.horizon.steps=3", "base_eval.samples=[]", "expect=null", "tracking.kind=none"]
    flags = [word for value in short for word in ("--set", value)]
    assert main([*shlex.split(command), *flags]) == 0
    shown = capfd.readouterr().out
    assert re.search(r"pretrain: done: .*steps 3,", shown) and "base_eval: done: bpb" in shown


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
