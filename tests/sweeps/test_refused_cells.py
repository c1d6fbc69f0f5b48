"""Mistakes that only show in cells are refused before anything runs, each at the value of the sweep that causes it."""

from __future__ import annotations

import pytest

from nanochat.plan.sweeps import compile_cells
from nanochat.recipe.parsing.diagnostics import LocatedRecipeError
from nanochat.recipe.sweeps.cells import list_cells


@pytest.fixture
def refusals(load):
    """Return a function that compiles a sweep, and returns code, line and column of each error."""

    def _refusals(sweep):
        with pytest.raises(LocatedRecipeError) as caught:
            loaded = load(sweep)
            compile_cells(loaded, list_cells(loaded))
        return [(d.code, d.origin.line - 17, d.origin.column) for d in caught.value.diagnostics], str(caught.value)

    return _refusals


def test_an_unknown_field_is_refused_at_its_path_with_a_suggestion(refusals):
    places, text = refusals("  over:\n    model.n_layers: [1, 2]\n    pretrain.optimizer.matrix_lr: [0.1, 0.2]\n")
    assert places == [("unknown-field", 2, 5)]
    assert "did you mean `n_layer`?" in text


def test_a_wrong_value_is_refused_at_the_value_once_although_many_cells_have_it(refusals):
    places, text = refusals("  over:\n    model.n_layer: [1, two, 0]\n    pretrain.tokens_per_step: [64, 128]\n")
    assert places == [("wrong-type", 2, 24), ("out-of-range", 2, 29)]
    assert "in cells 3, 4; cell 3 has model.n_layer=two, pretrain.tokens_per_step=64" in text


def test_a_shape_that_does_not_divide_is_refused_with_the_cell(refusals):
    places, text = refusals("  over:\n    model.n_embd: [32, 40]\n    model.n_head: [1, 3]\n")
    assert {code for code, _, _ in places} == {"impossible-shape"}
    assert "cell 2" in text


def test_values_that_compute_the_same_are_refused(refusals):
    assert refusals("  over:\n    pretrain.horizon.tokens: [6400, 6.4K]\n")[0] == [("same-cells", 2, 37)]
    assert refusals("  over:\n    vars.unused: [1, 2]\n")[0] == [("same-cells", 2, 22)]
    defaults = "  over:\n    model.n_layer: [1]\n    pretrain.schedule.warmup_steps: [0, null]\n"
    assert refusals(defaults)[0] == [("same-cells", 3, 5)], "at the field, because a default has no place"
    places, text = refusals("  over:\n    base_eval.samples: [[a], [b]]\n  until: pretrain\n")
    assert places == [("same-cells", 2, 30)]
    assert "compute the same up to `pretrain`" in text


def test_a_grid_may_have_cells_that_differ_in_a_value_that_only_others_use(load, refusals):
    """A constant schedule never falls to `final_frac`, which nothing uses in a sweep of that schedule alone."""
    fracs = "    pretrain.schedule.final_frac: [0.1, 0.2]\n"
    loaded = load("  over:\n    pretrain.schedule.kind: [constant, cosine]\n" + fracs)
    plans = compile_cells(loaded, list_cells(loaded))
    assert len({str([stage.identity for stage in plan.stages]) for plan in plans}) == 3
    places, _ = refusals("  over:\n    pretrain.schedule.kind: [constant]\n" + fracs)
    assert places == [("same-cells", 3, 41)]


def test_text_does_not_compare_with_numbers(refusals):
    places, _ = refusals("  over: {model.window_pattern: [S, L]}\n  where: model.window_pattern <= 4\n")
    assert places == [("bad-condition", 2, 10)]


def test_conditions_that_nothing_meets_are_refused(refusals):
    assert refusals("  over: {model.n_layer: [1, 2]}\n  where: model.n_layer > 4\n")[0] == [("no-cells", 2, 10)]


def test_a_search_is_tried_at_the_ends_of_its_ranges(refusals):
    places, _ = refusals(
        "  rank_by: {base_eval.bpb: min}\n"
        "  search:\n"
        "    trials: 3\n"
        "    space:\n"
        "      model.n_layer: {min: 1, max: 500}\n"
        "      model.windows: {choices: [S, L]}\n"
    )
    assert places == [("out-of-range", 5, 7), ("unknown-field", 6, 7)]
