"""The inputs from which a stage's specification is derived, in addition to the stage's own section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nanochat.data.sources import SourceSpec
from nanochat.model.config import GPTConfig
from nanochat.plan.specs.training import PretrainSpec
from nanochat.plurals import several
from nanochat.recipe.check.validation import FieldProblem
from nanochat.recipe.merge.tree import KeyPath
from nanochat.recipe.schema.recipe import Recipe


@dataclass
class PlanIssues:
    """Collects mistakes, so that they are reported together, and sentences that the plan shows."""

    problems: list[FieldProblem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def refuse(self, path: KeyPath, code: str, message: str, *, advice: str = "") -> None:
        """Add a mistake."""
        self.problems.append(FieldProblem(path, code, message, advice))

    def note(self, text: str | None) -> None:
        """Add a sentence to the plan, unless `text` is None."""
        if text:
            self.notes.append(text)

    def check_whole_rows(self, path: KeyPath, tokens_per_step: int, sequence_len: int) -> None:
        """Refuse a batch that is not a whole number of rows, and suggest the nearest sizes that are."""
        if tokens_per_step % sequence_len == 0:
            return
        below = tokens_per_step // sequence_len * sequence_len
        nearest = [str(value) for value in (below, below + sequence_len) if value]
        message = f"{tokens_per_step:,} tokens per step are not a whole number of rows of {sequence_len:,} tokens"
        self.refuse(path, "uneven-batch", message, advice=f"nearest that fit: {' and '.join(nearest)}")


@dataclass(frozen=True, kw_only=True)
class Derivation:
    """The recipe, and what was derived from it before this stage."""

    recipe: Recipe
    sources: Mapping[str, SourceSpec]
    config: GPTConfig | None
    """The recipe's model, if it describes one."""
    pretrain: PretrainSpec | None
    """The recipe's own pretraining, whose batch and optimizer are the defaults of later stages."""
    issues: PlanIssues

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
