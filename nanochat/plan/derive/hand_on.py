"""Checks that a stage with `hand_on: best` validates, because the validation loss decides which model is the best."""

from __future__ import annotations

from nanochat.plan.derive.issues import PlanIssues
from nanochat.recipe.schema.execution_sections import Monitor


def check_choice(stage: str, monitor: Monitor, steps: int | None, issues: PlanIssues) -> None:
    """Refuse a stage that never validates, and note one that validates only at its end."""
    every = monitor.validate_every_steps
    if every is None:
        message = "the best model is the one with the lowest validation loss, and this recipe does not validate"
        advice = "set `run.monitor.validate_every_steps` to a number of steps"
        issues.refuse((stage, "hand_on"), "missing-validation", message, advice=advice)
    elif steps is not None and every >= steps:
        issues.note(
            f"{stage}: `hand_on: best` has only the last step to choose from, because there are {steps:,} steps and "
            f"`run.monitor.validate_every_steps` is {every:,}"
        )
