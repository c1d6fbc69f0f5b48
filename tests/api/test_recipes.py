"""Recipes from Python: loaded, planned and refused as on the command line."""

from __future__ import annotations

import numpy as np
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


def test_overrides_may_be_values_of_numpy_and_paths(tmp_path):
    changes = {
        "seed": np.int64(7),
        "pretrain.optimizer.matrix_lr": np.float32(0.5),
        "base_eval.samples": np.array(["a", "b"]),
        "sources.stdlib": {"path": tmp_path},
    }
    recipe = nanochat.load_recipe("quickstart", changes).recipe
    assert (recipe.seed, recipe.pretrain.optimizer.matrix_lr) == (7, 0.5)
    assert list(recipe.base_eval.samples) == ["a", "b"]
    with pytest.raises(RecipeError, match=r"`seed`: .* is a `object`; give a number"):
        nanochat.load_recipe("quickstart", {"seed": object()})


def test_a_base_folder_may_be_a_text(tmp_path):
    assert nanochat.plan("quickstart", base_dir=str(tmp_path)).text == nanochat.plan("quickstart").text
    with pytest.raises(RecipeError, match=f"there are none under {tmp_path}"):
        nanochat.find_run("nothing", base_dir=str(tmp_path))


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
