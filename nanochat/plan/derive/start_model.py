"""Compares the model that a stage starts from with what the recipe says, before any stage starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nanochat.model.config import GPTConfig
from nanochat.plan.derive.issues import PlanIssues
from nanochat.recipe.schema.recipe import STAGE_SECTIONS, Recipe

_NOT_IN_RECIPES = frozenset({"norm_eps"})
"""Fields of a model that a recipe cannot give. Those of the weights are used."""


def model_differences(theirs: GPTConfig, ours: GPTConfig) -> list[str]:
    """Return the fields in which the model of given weights differs from the recipe's, with both values."""
    there, here = theirs.to_dict(), ours.to_dict()
    names = [name for name in here if name not in _NOT_IN_RECIPES and there[name] != here[name]]
    return [f"{name} {there[name]} there, {here[name]} here" for name in names]


def check_pretrain_start(recipe: Recipe, start: GPTConfig, config: GPTConfig, issues: PlanIssues) -> None:
    """Refuse weights of a different shape than the recipe's model.

    The recipe's own tokenizer may turn out to have fewer pieces than the recipe asks for, but never more.
    """
    assert recipe.pretrain is not None, "a recipe without `pretrain` starts no pretraining"
    wanted = config
    if recipe.tokenizer is None or start.vocab_size < config.vocab_size:
        wanted = replace(config, vocab_size=start.vocab_size)
    if differences := model_differences(start, wanted):
        message = f"`{recipe.pretrain.init_from}` is not the model of this recipe: {'; '.join(differences)}"
        advice = "let the sections `model` and `tokenizer` say what the weights were made with, or name other weights"
        issues.refuse(("pretrain", "init_from"), "different-model", message, advice=advice)
    elif wanted is not config and recipe.tokenizer is not None:
        issues.note(
            f"`{recipe.pretrain.init_from}` has {start.vocab_size:,} pieces, and this recipe's tokenizer asks for "
            f"{config.vocab_size:,}: pretrain will refuse the weights unless it turns out to be the same tokenizer; "
            "without the section `tokenizer` it uses that of the weights"
        )


def start_model(
    recipe: Recipe, stage: str, start_models: Mapping[str, GPTConfig], config: GPTConfig | None
) -> GPTConfig | None:
    """Return the model that a stage starts from: that of its own weights, else of the stage whose model it uses.

    `config` is the recipe's model, and used if the model of the weights is not known. None if nothing is known.
    """
    section = getattr(recipe, stage)
    if section.init_from is not None or stage == "pretrain":
        return start_models.get(stage, config)
    upstream = next((name for name in STAGE_SECTIONS[stage].upstream if getattr(recipe, name) is not None), None)
    return config if upstream is None else start_model(recipe, upstream, start_models, config)
