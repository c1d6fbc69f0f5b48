"""`load_recipe` knows where values come from, and callers can add errors at their places."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanochat.data.sources.source_contents import resolve_files
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import RecipeError
from nanochat.recipe.check.validation import FieldProblem
from nanochat.recipe.load import load_recipe
from nanochat.recipe.parsing.diagnostics import LocatedRecipeError

VALID = Path(__file__).parent / "valid"


def test_origins_name_the_file_or_flag_of_each_value():
    """The files are a base recipe and a child recipe, with lines and columns counted by hand."""
    loaded = load_recipe(VALID / "child.yaml", ["seed=3"])
    places = {
        path: (Path(origin.text.name).name, origin.line, origin.column) for path, origin in loaded.origins.items()
    }
    assert places["name",] == ("child.yaml", 2, 7)
    assert places["pretrain", "horizon", "tokens"] == ("child.yaml", 8, 21)
    assert places["model", "n_head"] == ("all_stages.yaml", 24, 11)
    assert str(loaded.origins["seed",]) == "--set seed=3"
    assert ("pretrain", "buffer_documents") in loaded.origins
    assert ("run", "threads") not in loaded.origins  # a default


def test_callers_can_add_errors_at_places_of_the_recipe(monkeypatch):
    """The plan does this for shapes that do not divide."""
    monkeypatch.chdir(VALID)
    loaded = load_recipe(Path("child.yaml"), ["run.threads=2"])
    problems = [
        FieldProblem(("run", "threads"), "too-many", "two threads are one too many"),
        FieldProblem(("model", "n_head"), "bad-shape", "4 does not divide 130", "try 2"),
        FieldProblem(("pretrain", "horizon", "steps"), "why-not", "not given", at_key=True),
    ]
    assert str(LocatedRecipeError(map(loaded.locate, problems))) == (
        "error[bad-shape]: 4 does not divide 130\n"
        "  --> all_stages.yaml:24:11\n"
        "    |\n"
        " 24 |   n_head: 4\n"
        "    |           ^\n"
        "  = try 2\n"
        "\n"
        "error[why-not]: not given\n"
        "  --> child.yaml:8:3\n"
        "    |\n"
        "  8 |   horizon: {tokens: 1M}\n"
        "    |   ^^^^^^^\n"
        "\n"
        "error[too-many]: two threads are one too many\n"
        "  --> --set\n"
        "    |\n"
        "    | --set run.threads=2\n"
        "    |                   ^\n"
        "\n"
        "3 errors in the recipe"
    )


def test_error_shows_the_first_fifty_problems_and_counts_all(write, body):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(a=body + "run:\n" + "".join(f"  wrong{i}: 1\n" for i in range(70))))
    assert str(caught.value).count("error[") == 50
    assert str(caught.value).endswith("70 errors (the first 50 are shown) in the recipe")


@pytest.mark.parametrize(
    ("written", "name"),
    [("books/a.txt", "books/a.txt"), ("My Book [2020].txt", "My Book [2020].txt"), ("books/*.txt", "books/a.txt")],
)
def test_source_paths_are_patterns_but_the_folder_of_the_recipe_is_none(tmp_path, written, name):
    folder = tmp_path / "proj [v2]"
    for file in (folder / name, tmp_path / "proj v" / name):
        file.parent.mkdir(parents=True)
        file.write_text("text")
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"nanochat: 1\nname: x\nsources:\n  docs: {{path: '{written}'}}\ntokenizer: {{source: docs, vocab_size: 320}}\n"
    )
    path = load_recipe(recipe).recipe.sources["docs"].path
    assert resolve_files(SourceSpec(name="docs", path=(path,)), base=tmp_path) == (folder / name,)
