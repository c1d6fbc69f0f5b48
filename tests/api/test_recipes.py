"""Recipes from Python: loaded, planned and refused as on the command line."""

from __future__ import annotations

import pytest

import nanochat
from nanochat.cli.run import main
from nanochat.errors import RecipeError


def test_overrides_are_a_mapping_or_texts_as_for_set():
    by_name = nanochat.load_recipe("quickstart", {"pretrain.horizon.tokens": "3M", "seed": 7, "expect": None})
    by_text = nanochat.load_recipe("quickstart", ["pretrain.horizon.tokens=3M", "seed=7", "expect=null"])
    assert by_name.recipe == by_text.recipe
    assert by_name.recipe.pretrain.horizon.tokens == 3_000_000 and by_name.recipe.expect == {}
    with pytest.raises(TypeError, match="not the text"):
        nanochat.load_recipe("quickstart", "seed=7")


def test_a_plan_is_that_of_the_command(tmp_path, capsys):
    plan = nanochat.plan("quickstart", {"seed": 7}, base_dir=tmp_path / "base")
    assert [stage.name for stage in plan.stages] == ["tokenizer", "pretrain", "base_eval", "sft", "chat_eval"]
    assert {stage.action for stage in plan.stages} == {"run"} and plan.problems == ()
    assert main(["plan", "quickstart", "--set", "seed=7"]) == 0
    assert capsys.readouterr().out == str(plan)
    assert plan._repr_html_().startswith("<pre>quickstart: 5 stages, seed 7\n")


def test_a_loaded_recipe_can_be_planned_and_changed_further():
    loaded = nanochat.load_recipe("quickstart", {"seed": 7})
    assert "seed 7" in nanochat.plan(loaded).text
    assert "seed 8" in nanochat.plan(loaded, {"seed": 8}).text


def test_mistakes_are_the_errors_of_the_command_line():
    with pytest.raises(RecipeError, match="did you mean `n_layer`"):
        nanochat.plan("quickstart", {"model.n_layers": 3})
    with pytest.raises(RecipeError, match="no run `nothing`"):
        nanochat.find_run("nothing")
    with pytest.raises(RecipeError, match=r"no run (or model )?`nothing`"):
        nanochat.load("nothing")


def test_a_sweep_is_refused_with_the_command_that_runs_it(tmp_path):
    recipe = tmp_path / "sweep.yaml"
    recipe.write_text("extends: quickstart\nname: many\nsweep: {seeds: [1, 2]}\n")
    with pytest.raises(RecipeError, match="is a sweep of many runs; start it with `nanochat-run "):
        nanochat.plan(recipe)
