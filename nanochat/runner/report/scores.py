"""What a run's stages did and how good the outcome is, in words for a reader new to the code and the field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nanochat.plan.stages import STAGES, evaluation_stages
from nanochat.runner.store.record import StageRecord
from nanochat.tasks.table import TASKS

_ERRORS = 2
"""A score within so many standard errors of chance is no evidence of skill."""


@dataclass(frozen=True)
class Suite:
    """The outcome of one suite of an evaluation; error, count and chance are None where it is no share of problems."""

    stage: str
    name: str
    task: str
    value: float
    stderr: float | None
    count: int | None
    chance: float | None
    passes: Mapping[int, float] = field(default_factory=dict)
    """Share of problems that at least one of k answers solves, by k."""

    @property
    def meaning(self) -> str:
        """What its task asks, in a few words."""
        return TASKS[self.task].asks if self.task in TASKS else ""

    @property
    def verdict(self) -> str:
        """How to read the score."""
        if self.stderr is None or self.chance is None:
            return ""
        if self.chance == 0:
            tries = f", {self.passes[most]:.0%} in {most} tries" if (most := max(self.passes, default=1)) > 1 else ""
            return ("none solved" if self.value == 0 else f"{self.value:.0%} solved") + tries
        if abs(self.value - self.chance) <= _ERRORS * self.stderr:
            return "no better than guessing"
        return "better than guessing" if self.value > self.chance else "worse than guessing"


def list_suites(records: Mapping[str, StageRecord]) -> list[Suite]:
    """Return the outcome of every suite of the evaluations that are done."""
    found = []
    for stage in evaluation_stages():
        if stage not in records:
            continue
        metrics = records[stage].metrics
        for name, task in _tasks(records[stage]).items():
            if name in metrics:
                centred, count = metrics.get(f"{name}.centred"), metrics.get(f"{name}.n")
                chance = None if centred is None else chance_level(metrics[name], centred)
                n = None if count is None else int(count)
                passes = {
                    int(metric.removeprefix(f"{name}.pass_at_")): value
                    for metric, value in metrics.items()
                    if metric.startswith(f"{name}.pass_at_")
                }
                found.append(Suite(stage, name, task, metrics[name], metrics.get(f"{name}.stderr"), n, chance, passes))
    return found


def chance_level(value: float, centred: float) -> float | None:
    """Return the score of a guess, from centred = (value - chance) / (1 - chance); None at 1, which hides it."""
    return round((value - centred) / (1 - centred), 4) if centred < 1 else None


def describe_stages(records: Mapping[str, StageRecord]) -> list[str]:
    """Return a sentence for each stage that is done: what it is for and what came out."""
    return [f"**{stage}** {STAGES[stage].outcome(record.metrics)}" for stage, record in records.items()]


def _tasks(record: StageRecord) -> dict[str, str]:
    """Return the task of each suite by its name, from what the stage's fingerprint was made of."""
    fields, prefix = record.document.get("fields"), f"{record.stage}.suites."
    assert isinstance(fields, dict), "a document has fields"
    return {
        key.removeprefix(prefix).removesuffix(".task"): str(value)
        for key, value in fields.items()
        if key.startswith(prefix) and key.endswith(".task")
    }
