"""Printed recipes: with defaults, with origins, and the difference of two recipes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.recipe.check.tracking_values import acceptable_key
from nanochat.recipe.load import LoadedRecipe, load_recipe
from nanochat.recipe.parsing.diagnostics import Origin, Text
from nanochat.recipe.parsing.nodes import Node
from nanochat.recipe.schema.recipe import Recipe
from nanochat.recipe.show import diff_recipes, resolved_yaml, yaml_with_origins

VALID = Path(__file__).parent / "valid"
SHIPPED = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))

# All text that YAML can represent. The reader refuses NUL and unpaired surrogates.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30) | st.sampled_from(
    [
        *("no", "1e5", "1e-4", "010", "0o7", "12:30", "null", "~", "", " a ", "a: b", "a #b", "- a"),
        *("${vars.x}", "$${", "<<", "1_0", "=", "2024-01-01", "\u0085", "\ufeff"),
    ]
)
FLOATS = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)
RECIPES = st.builds(
    lambda description, seed, scale, prompts, tags, top_k, minutes: Recipe(
        nanochat=1,
        name="generated",
        description=description,
        seed=seed,
        sources={"a": {"path": "/data/x.txt"}, "2024": {"builtin": "spelling", "column": description}},
        pretrain={"data": {"a": {"weight": scale}}, "init_from": "some-run"},
        base_eval={"suites": {"no": {"task": "bpb"}}, "samples": tuple(prompts)},
        chat_eval={"suites": {"s": {"task": "simple_spelling", "source": "2024", "top_k": top_k}}},
        run={"checkpoint": {"every_minutes": minutes}},
        tracking={"tags": tags},
    ),
    TEXT,
    st.integers(0, 2**63 - 1),
    FLOATS,
    st.lists(TEXT, max_size=3),
    st.dictionaries(TEXT.map(acceptable_key), TEXT, max_size=3),
    st.none() | st.integers(1, 100),
    st.none() | FLOATS,
)


@given(recipe=RECIPES)
def test_loading_a_printed_recipe_gives_the_same_recipe(recipe, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(resolved_yaml(_as_loaded(recipe)), encoding="utf-8", newline="")
    assert load_recipe(path).recipe == recipe


@pytest.mark.parametrize("name", ["all_stages", "child"])
def test_printing_a_printed_recipe_changes_nothing(name, tmp_path):
    """The recipes use `extends`, variables and flags."""
    loaded = load_recipe(VALID / f"{name}.yaml", ["seed=9"])
    path = tmp_path / "resolved.yaml"
    path.write_text(resolved_yaml(loaded), encoding="utf-8")
    again = load_recipe(path)
    assert again.recipe == loaded.recipe
    assert resolved_yaml(again) == resolved_yaml(loaded)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_loading_a_printed_recipe_that_is_shipped_gives_the_same_recipe(path, tmp_path):
    """And no warnings, as the shipped one has none. A run keeps its recipe like this, and `best` prints it."""
    recipe = load_recipe(path).recipe
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(resolved_yaml(load_recipe(path)), encoding="utf-8")
    again = load_recipe(resolved)
    assert again.recipe == recipe
    assert again.warnings() == []


def test_each_value_is_printed_with_its_line_flag_or_default(monkeypatch):
    monkeypatch.chdir(VALID)
    lines = yaml_with_origins(load_recipe(Path("child.yaml"), ["seed=9"])).splitlines()
    shown = {line.split("#")[0].strip(): line.partition("#")[2].strip() for line in lines}
    assert shown["seed: 9"] == "--set seed=9"
    assert shown["name: child"] == "child.yaml:2"
    assert shown["n_head: 4"] == "all_stages.yaml:24"
    assert shown["threads: 1"] == "default"
    assert shown["model:"] == ""


def test_difference_of_two_recipes_includes_defaults():
    first = load_recipe(VALID / "child.yaml").recipe
    flags = ["run.threads=2", "pretrain.horizon.steps=5", "base_eval.samples=[]"]
    second = load_recipe(VALID / "child.yaml", flags).recipe
    assert diff_recipes(first, second) == [
        ("pretrain.horizon.tokens", 1_000_000, None),
        ("base_eval.samples", ["Only this"], []),
        ("run.threads", 1, 2),
        ("pretrain.horizon.steps", None, 5),
    ]
    assert diff_recipes(first, first) == []


def test_difference_of_a_filled_and_an_empty_section_names_the_values_alone():
    first = load_recipe(VALID / "child.yaml").recipe
    second = load_recipe(VALID / "child.yaml", ["expect=null"]).recipe
    assert first.expect
    assert diff_recipes(first, second) == [(f"expect.{name}", text, None) for name, text in first.expect.items()]
    assert diff_recipes(second, first) == [(f"expect.{name}", None, text) for name, text in first.expect.items()]


def _as_loaded(recipe):
    text = Text("generated.yaml", "", Path())
    return LoadedRecipe(recipe, Path(text.name), text.name, {}, {}, (), Node({}, Origin(text, 1, 1)))
