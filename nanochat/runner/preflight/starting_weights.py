"""Finds the weights that stages with `init_from` start from, and the configuration of their models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nanochat.errors import NanochatError
from nanochat.model.config import GPTConfig
from nanochat.plan.stages import STAGES, training_stages
from nanochat.recipe.schema.recipe import Recipe
from nanochat.runner.store.run_catalog import resolve_model
from nanochat.runner.store.stage_cache import CacheLookup, ResolvedStage
from nanochat.runner.store.verification import ModelFiles, model_to_start_from
from nanochat.storage.layout import TOKENIZER_FILE


@dataclass(frozen=True)
class StartingWeights:
    """The weights that stages with `init_from` start from, each by its stage.

    Attributes:
        models: their folders, and the size, time and digest of each file.
        configs: the models' configurations.
        problems: weights that cannot be used, with the reason.
    """

    models: dict[str, ModelFiles] = field(default_factory=dict)
    configs: dict[str, GPTConfig] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def find_starting_weights(recipe: Recipe, base: Path) -> StartingWeights:
    """Return the weights that the stages of a recipe start from, and what is wrong with them."""
    starts = StartingWeights()
    for name, reference in _references(recipe):
        try:
            folder = resolve_model(reference, base, prefer=_preferred_models(name))
            model = model_to_start_from(folder, base, with_optimizer=STAGES[name].trains)
            starts.configs[name] = _read_config(folder)
            starts.models[name] = model
        except (NanochatError, OSError) as error:
            starts.problems.append(f"{name}.init_from: {error}")
    return starts


def known_start_models(recipe: Recipe, base: Path) -> dict[str, GPTConfig]:
    """Return the models that stages start from, by stage, as far as they can be read now."""
    models = {}
    for name, reference in _references(recipe):
        try:
            models[name] = _read_config(resolve_model(reference, base, prefer=_preferred_models(name)))
        except (NanochatError, OSError):  # the plan reports it
            continue
    return models


def find_other_tokenizer(model: Path, lookups: Sequence[CacheLookup]) -> Iterator[str]:
    """Yield that the weights of pretraining have a different tokenizer than the recipe, if the recipe's is cached."""
    for lookup in lookups:
        if lookup.stage.name == "tokenizer" and isinstance(lookup, ResolvedStage) and lookup.record is not None:
            own, theirs = lookup.folder.out / TOKENIZER_FILE, model / TOKENIZER_FILE
            if own.is_file() and theirs.is_file() and own.read_bytes() != theirs.read_bytes():
                yield (
                    f"pretrain.init_from: {model} was trained with a different tokenizer than this recipe's; remove "
                    "the section `tokenizer`, and pretraining uses that of the weights"
                )


def _references(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield each stage with `init_from`, and what it names."""
    for name in STAGES:
        reference = getattr(getattr(recipe, name), "init_from", None)
        if reference is not None:
            yield name, reference


def _read_config(folder: Path) -> GPTConfig:
    from nanochat.checkpoint.config_file import load_config  # here, because few recipes start from weights

    return load_config(folder)


def _preferred_models(stage: str) -> list[str]:
    """Return the training stages whose model a stage starts from, its usual upstream stages first."""
    models = training_stages()
    usual = [name for name in STAGES[stage].upstream if name in models]
    return [*usual, *(name for name in models if name not in usual)]
