"""Weights that do not suit a recipe are refused by `check`, `plan` and a run before any stage starts."""

from __future__ import annotations

import json
import shutil

import pytest

from nanochat.cli.run import main
from nanochat.errors import PreflightError
from nanochat.recipe.parsing.diagnostics import LocatedRecipeError

ALONE = ("tokenizer=null", "model=null", "pretrain=null", "base_eval=null", "chat_eval=null")


@pytest.fixture
def weights(bench):
    """Return a folder with a model of one layer, width 32, context 32 and 300 pieces that nothing describes."""
    bench.run(last="pretrain")
    bench.calls()
    (stored,) = (bench.base / "stages" / "pretrain").glob("*/out/model")
    return shutil.copytree(stored, bench.folder / "model")


def change(weights, **fields):
    """Change fields of the model's configuration."""
    content = json.loads((weights / "config.json").read_text())
    content["model"] |= fields
    (weights / "config.json").write_text(json.dumps(content))


def flags(*settings):
    return [word for setting in settings for word in ("--set", setting)]


@pytest.mark.parametrize(
    ("setting", "difference"),
    [
        ("model.architecture=portable", "architecture seed there, portable here"),
        ("model.n_embd=64", "n_embd 32 there, 64 here"),
        ("vocab", "vocab_size 301 there, 300 here"),
    ],
)
def test_pretraining_from_a_different_model_is_refused_at_its_place(bench, weights, capsys, setting, difference):
    if "vocab" in setting:  # a recipe cannot ask for fewer than 300 pieces
        change(weights, vocab_size=301)
        setting = "seed=1"
    bench.recipe.write_text(bench.recipe.read_text().replace("  horizon", "  init_from: ./model\n  horizon", 1))
    for command in ("check", "plan"):
        assert main([command, str(bench.recipe), *flags(setting)]) == 2
        said = capsys.readouterr().err
        assert f"error[different-model]: `{weights}` is not the model of this recipe: {difference}" in said
        assert "tiny.yaml:11:14" in said
    with pytest.raises(LocatedRecipeError, match=difference):
        bench.run(setting)
    assert bench.calls() == []


def test_check_of_a_sweep_names_the_cells_that_do_not_suit_the_weights(bench, weights, capsys):
    """Whether the recipe itself would suit them does not matter."""
    sweep = ("sweep={over: {model.n_layer: [1, 2]}}", "model.n_layer=3", f"pretrain.init_from={weights}")
    assert main(["check", str(bench.recipe), *flags(*sweep)]) == 2
    said = capsys.readouterr().err
    assert "n_layer 1 there, 2 here" in said and "in cell 2" in said and "1 error in the recipe" in said


def test_pretraining_from_fewer_pieces_than_the_recipe_asks_for_is_noted(bench, weights):
    """A small text yields fewer pieces than the recipe asks for, so that the weights may fit."""
    change(weights, vocab_size=280)
    notes = bench.prepare(f"pretrain.init_from={weights}").plan.notes
    assert any("has 280 pieces, and this recipe's tokenizer asks for 300" in note for note in notes)
    notes = bench.prepare(f"pretrain.init_from={weights}", "tokenizer=null").plan.notes
    assert not any("pieces" in note for note in notes)


def test_pretraining_from_weights_with_a_different_tokenizer_is_refused(bench, weights, capsys):
    """The recipe's own tokenizer is finished, so that the two can be compared."""
    (own,) = (bench.base / "stages" / "tokenizer").glob("*/out/weights.bin")
    own.with_name("tokenizer.model").write_text("another tokenizer")
    assert main(["plan", str(bench.recipe), *flags(f"pretrain.init_from={weights}")]) == 3
    problem = f"pretrain.init_from: {weights} was trained with a different tokenizer than this recipe's"
    assert problem in capsys.readouterr().out
    with pytest.raises(PreflightError, match="was trained with a different tokenizer"):
        bench.run(f"pretrain.init_from={weights}")
    assert bench.calls() == []
    shutil.copy(weights / "tokenizer.model", own.with_name("tokenizer.model"))
    assert bench.prepare(f"pretrain.init_from={weights}").find_other_tokenizer() == []


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        (
            ("sft.sequence_len=64", "sft.tokens_per_step=64"),
            "rows of 64 tokens are longer than the model's context of 32",
        ),
        (("sft.tokens_per_step=40",), "40 tokens per step are not a whole number of rows of 32 tokens"),
    ],
)
def test_sft_that_does_not_suit_its_weights_is_refused(bench, weights, capsys, settings, error):
    """The recipe itself has no model."""
    given = [*ALONE, f"sft.init_from={weights}", *settings]
    assert main(["check", str(bench.recipe), *flags(*given)]) == 2
    assert error in capsys.readouterr().err
    with pytest.raises(LocatedRecipeError, match=error):
        bench.run(*given)
    assert bench.calls() == []


def test_weights_with_a_shorter_context_than_the_recipes_model_are_refused(bench, weights):
    """SFT takes the length of its rows from the recipe's model, although it starts from other weights."""
    change(weights, sequence_len=16)
    with pytest.raises(LocatedRecipeError, match="rows of 32 tokens are longer than the model's context of 16"):
        bench.prepare(f"sft.init_from={weights}")


def test_rl_after_weights_is_checked_with_their_context(bench, weights):
    """The stage rl starts from what sft makes of them."""
    suite = "{spelling: {task: simple_spelling, source: words, max_problems: 4}}"
    rl = f"rl={{data: {suite}, held_out: {suite}, horizon: {{steps: 1}}, max_tokens: 32}}"
    with pytest.raises(LocatedRecipeError, match="answers of 32 tokens leave no room for questions in a context of 32"):
        bench.prepare(*ALONE, f"sft.init_from={weights}", "sft.tokens_per_step=64", rl)


def test_configuration_that_cannot_be_read_is_a_problem(bench, weights, capsys):
    (weights / "config.json").write_text("{")
    given = [*ALONE, f"sft.init_from={weights}", "sft.tokens_per_step=64"]
    assert main(["plan", str(bench.recipe), *flags(*given)]) == 3
    assert f"sft.init_from: {weights / 'config.json'}" in capsys.readouterr().out
    with pytest.raises(PreflightError, match=r"1 problem to fix.*\n.*sft\.init_from"):
        bench.run(*given)
    assert main(["check", str(bench.recipe), *flags(*given)]) == 0


def test_check_of_weights_that_are_not_here_is_fine(bench, capsys):
    assert main(["check", str(bench.recipe), *flags(*ALONE, "sft.init_from=gone", "sft.tokens_per_step=64")]) == 0
