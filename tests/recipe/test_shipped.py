"""The recipes that come with nanochat, by their names."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nanochat.cli.run import main
from nanochat.errors import RecipeError
from nanochat.recipe.load import load_recipe
from nanochat.recipe.shipped import find_recipe, schema_path, shipped_recipes, summarize

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_name_means_the_shipped_recipe(capsys):
    assert load_recipe(Path("quickstart")).path == RECIPES / "quickstart.yaml"
    assert main(["check", "quickstart"]) == 0
    assert capsys.readouterr().out == "quickstart: ok\n"


def test_a_file_wins_over_a_name_and_a_folder_does_not():
    Path("quickstart").mkdir()
    assert find_recipe(Path("quickstart")) == RECIPES / "quickstart.yaml"
    Path("quickstart").rmdir()
    shutil.copy(RECIPES / "dry_run.yaml", "quickstart")
    assert load_recipe(Path("quickstart")).recipe.name == "dry_run"


@pytest.mark.parametrize("word", ["quikstart", "Quickstart", "quickstart.yaml", "recipes/quickstart.yaml"])
def test_an_unknown_name_is_refused_with_the_nearest_one(word, capsys):
    with pytest.raises(RecipeError, match="did you mean `quickstart`"):
        load_recipe(Path(word))
    assert main([word]) == 2
    assert "did you mean `quickstart`" in capsys.readouterr().err


def test_extends_takes_a_name_unless_there_is_a_file_of_this_name():
    Path("mine.yaml").write_text("extends: d4\nname: mine\n")
    assert load_recipe(Path("mine.yaml")).recipe.model == load_recipe(Path("d4")).recipe.model
    Path("d4").write_text("extends: d6\n")
    assert load_recipe(Path("mine.yaml")).recipe.model == load_recipe(Path("d6")).recipe.model


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_recipe_says_what_it_is_for_and_what_it_costs(name):
    summary = summarize(shipped_recipes()[name])
    assert summary.purpose.endswith(".") and summary.cost.endswith(".")


@pytest.mark.parametrize("name", sorted(set(shipped_recipes()) - {"own_docs", "own_questions", "local_text"}))
def test_a_new_recipe_is_the_shipped_one_with_its_own_name(name, tmp_path):
    assert main(["new", name, "mine.yaml"]) == 0
    mine, original = load_recipe(Path("mine.yaml")).recipe, load_recipe(Path(name)).recipe
    assert mine.name == "mine"
    assert mine.model_copy(update={"name": name}) == original.model_copy(update={"name": name})
    assert Path("mine.yaml").read_text().startswith(f"# yaml-language-server: $schema={schema_path().as_uri()}\n")


def test_new_names_sources_whose_paths_now_start_elsewhere(capsys):
    assert main(["new", "own_docs", "mine.yaml"]) == 0
    assert "name your files in the source `docs`" in capsys.readouterr().out


def test_new_names_grading_programs_whose_paths_now_start_elsewhere(capsys):
    assert main(["new", "own_questions", "mine.yaml"]) == 0
    files = "the source `code_questions`, the source `word_questions`, `chat_eval.suites.letters.program`"
    assert f"name your files in {files}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["quikstart", "x.yaml"], "did you mean `quickstart`"),
        (["quickstart", "mine.txt"], "ends in .yaml"),
        (["quickstart", "here.yaml"], "already exists"),
        (["quickstart", "none/x.yaml"], "there is no folder none"),
    ],
)
def test_new_writes_nothing_that_it_should_not(arguments, reason, capsys):
    Path("here.yaml").write_text("mine")
    assert main(["new", *arguments]) == 2
    assert reason in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["here.yaml"] and Path("here.yaml").read_text() == "mine"
