"""The inputs from which a stage's specification is derived, in addition to the stage's own section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nanochat.data.sources.source_spec import SourceSpec
from nanochat.model.config import GPTConfig
from nanochat.plan.derive.issues import PlanIssues
from nanochat.plan.derive.start_model import start_model
from nanochat.plan.specs.training import PretrainSpec
from nanochat.plurals import several
from nanochat.recipe.schema.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Derivation:
    """The recipe, and what was derived from it before this stage."""

    recipe: Recipe
    sources: Mapping[str, SourceSpec]
    config: GPTConfig | None
    """The recipe's model, if it describes one."""
    start_models: Mapping[str, GPTConfig]
    """The models that stages with `init_from` start from, by stage, as far as they are known."""
    pretrain: PretrainSpec | None = None
    """The recipe's own pretraining, whose batch and optimizer are the defaults of later stages."""
    issues: PlanIssues

    def start_model(self, stage: str) -> GPTConfig | None:
        """Return the model that a stage starts from, None if it is not known."""
        return start_model(self.recipe, stage, self.start_models, self.config)

    @property
    def bpb_source(self) -> str | None:
        """The source that bits per byte are measured on by default: the first one of the pretraining mixture."""
        return next(iter(self.recipe.pretrain.data)) if self.recipe.pretrain else None

    def check_best(self, stage: str, steps: int | None) -> None:
        """Refuse a stage with `hand_on: best` that never validates, and note one that validates only at its end."""
        every = self.recipe.run.monitor.validate_every_steps
        if every is None:
            message = "the best model is the one with the lowest validation loss, and this recipe does not validate"
            advice = "set `run.monitor.validate_every_steps` to a number of steps"
            self.issues.refuse((stage, "hand_on"), "missing-validation", message, advice=advice)
        elif steps is not None and every >= steps:
            self.issues.note(
                f"{stage}: `hand_on: best` has only the last step to choose from, because it has "
                f"{several(steps, 'step')} and `run.monitor.validate_every_steps` is {every:,}"
            )
