"""A sweep compiles into ordinary recipes: which cells there are, and that each equals the recipe with `--set` flags."""

from __future__ import annotations

import pytest

from nanochat.plan.compile import compile_plan
from nanochat.plan.sweeps import compile_cells, share_stages
from nanochat.recipe.load import load_recipe
from nanochat.recipe.parsing.diagnostics import LocatedRecipeError
from nanochat.recipe.sweeps.cells import list_cells

GRID = """\
  over:
    pretrain.optimizer.matrix_lr: [0.01, 0.02]
    model.n_layer: [1, 2, 3]
"""


def values_of(loaded):
    return [tuple(cell.values.values()) for cell in list_cells(loaded)]


def test_the_grid_has_every_combination_and_the_last_field_changes_fastest(load):
    cells = list_cells(load(GRID))
    assert [(*cell.values.values(), cell.number) for cell in cells] == [
        (0.01, 1, 1), (0.01, 2, 2), (0.01, 3, 3), (0.02, 1, 4), (0.02, 2, 5), (0.02, 3, 6),
    ]  # fmt: skip
    assert [(cell.loaded.recipe.pretrain.optimizer.matrix_lr, cell.loaded.recipe.model.n_layer) for cell in cells] == [
        (0.01, 1), (0.01, 2), (0.01, 3), (0.02, 1), (0.02, 2), (0.02, 3),
    ]  # fmt: skip
    assert all(cell.loaded.recipe.sweep is None for cell in cells)


def test_zipped_fields_change_together_and_are_combined_with_the_grid(load):
    sweep = "  over: {pretrain.tokens_per_step: [64, 128]}\n  zip: {model.n_embd: [32, 64], model.n_head: [1, 2]}\n"
    assert values_of(load(sweep)) == [(64, 32, 1), (64, 64, 2), (128, 32, 1), (128, 64, 2)]


def test_seeds_are_a_list_or_are_counted_up_from_the_seed_of_the_recipe(load):
    assert [cell.seed for cell in list_cells(load("  seeds: 3\n"))] == [7, 8, 9]
    assert [cell.seed for cell in list_cells(load("  seeds: [5, 3]\n"))] == [5, 3]
    with_grid = list_cells(load("  over: {model.n_layer: [1, 2]}\n  seeds: 2\n"))
    assert [(cell.values["model.n_layer"], cell.seed) for cell in with_grid] == [(1, 7), (1, 8), (2, 7), (2, 8)]


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("model.n_layer <= 2", [(0.01, 1), (0.01, 2), (0.02, 1), (0.02, 2)]),
        ("model.n_layer < 2 or pretrain.optimizer.matrix_lr == 0.01", [(0.01, 1), (0.01, 2), (0.01, 3), (0.02, 1)]),
        ("[model.n_layer != 2, pretrain.optimizer.matrix_lr > 1e-2]", [(0.02, 1), (0.02, 3)]),
        ("pretrain.optimizer.matrix_lr >= model.n_layer or model.n_layer == 3", [(0.01, 3), (0.02, 3)]),
    ],
)
def test_combinations_that_do_not_meet_the_conditions_are_skipped(load, where, kept):
    assert values_of(load(f"{GRID}  where: {where}\n")) == kept


def test_conditions_compare_counts_with_letters_as_numbers(load):
    sweep = "  over: {pretrain.horizon.tokens: [64K, 1M, 2000]}\n  where: pretrain.horizon.tokens < 1M\n"
    assert values_of(load(sweep)) == [(64_000,), (2_000,)]


def test_a_cell_equals_the_recipe_with_the_flags_that_its_command_shows(load, monkeypatch, tmp_path):
    """The values are of every kind: a variable, a path, a map, null, a list, and text that looks like a variable."""
    sweep = """\
  over:
    vars.steps: [4, 5]
    sources.text.path: [./text.txt, "text*"]
    pretrain.horizon: [{tokens: 640}]
    pretrain.data.text: [null]
    pretrain.data: [{text: {weight: 2}}]
    base_eval.samples: [["$${a", "b: 'c'"]]
    model.window_pattern: [null, "SL"]
"""
    sweep = sweep.replace("    pretrain.data.text: [null]\n", "")
    loaded = load(sweep, "pretrain.buffer_documents=5")
    cells = list_cells(loaded)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)  # flags read relative paths from the working directory
    for cell in cells:
        alone = load_recipe(loaded.path, cell.loaded.overrides)
        assert alone.recipe == cell.loaded.recipe
        assert [stage.identity for stage in compile_plan(alone).stages] == [
            stage.identity for stage in compile_plan(cell.loaded).stages
        ]
    assert len({cell.name for cell in cells}) == len(cells) == 8


def test_names_of_runs_are_made_of_the_values_and_stay_when_the_sweep_grows(load):
    names = [cell.name for cell in list_cells(load(GRID))]
    assert names[:2] == ["grid-0_01-1", "grid-0_01-2"]
    grown = [cell.name for cell in list_cells(load(GRID.replace("[0.01, 0.02]", "[0.005, 0.01, 0.02]")))]
    assert set(names) < set(grown)
    long = list_cells(load(f"  over: {{base_eval.samples: [[{'a' * 80}], [{'a' * 80}, b]]}}\n"))
    assert len({cell.name for cell in long}) == 2
    assert all(len(cell.name) <= 64 for cell in long)


def test_a_stage_that_does_not_depend_on_the_swept_fields_is_shared(load):
    loaded = load(GRID)
    cells = list_cells(loaded)
    plans = compile_cells(loaded, cells)
    shared = share_stages({cell.number: plan for cell, plan in zip(cells, plans, strict=True)}, None)
    assert [(x.stage.name, x.cells) for x in shared if len(x.cells) > 1] == [("tokenizer", (1, 2, 3, 4, 5, 6))]
    assert sum(x.stage.name == "pretrain" for x in shared) == 6


def test_more_than_a_thousand_cells_must_be_wanted(load, monkeypatch):
    many = "  over:\n    model.n_layer: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\n  seeds: 1000\n"
    with pytest.raises(LocatedRecipeError) as caught:
        list_cells(load(many))
    assert "the sweep has 10,000 cells" in str(caught.value)
    assert "--yes" in str(caught.value)
    assert caught.value.diagnostics[0].origin.line == 17
    monkeypatch.setattr("nanochat.recipe.sweeps.combinations.MAX_CELLS", 10)
    with pytest.raises(LocatedRecipeError, match="the sweep has 20 cells"):
        list_cells(load(many.replace("1000", "2")))
    assert len(list_cells(load(many.replace("1000", "2")), are_many_fine=True)) == 20
