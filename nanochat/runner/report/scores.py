"""The scores of evaluation suites, with a reading of each one for newcomers to the field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nanochat.plan.describe import NOT_REPRODUCIBLE
from nanochat.plan.stages import STAGES, evaluation_stages
from nanochat.runner.report.results import Result, list_results, time_remark
from nanochat.runner.store.record import StageRecord
from nanochat.tasks.table import TASKS

SCORE_LEGEND = """\
A score is the share of problems that the model solved, from 0 to 1, unless its task says otherwise. ± is the standard
error: on other problems of the same kind, most scores would be within two standard errors of this one. n is the number
of problems. A guess is what a model would score by choosing answers at random. A prompt is cut if it does not fit into
the model's context, an answer if it reaches the limit of its length."""
_SIGNIFICANT_ERRORS = 2
"""A score closer to chance than this many standard errors is no evidence of skill."""


@dataclass(frozen=True)
class SuiteScore:
    """The score of a suite, and what it says about the model."""

    score: Result
    task: str
    passes: Mapping[int, float] = field(default_factory=dict)
    """The share of problems that at least one of k answers solves, by k."""
    tokens: int | None = None
    """The tokens of text that were read, if the suite reads text instead of problems."""

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """The cells of a table: value, standard error, how much was evaluated, and score of a guess."""
        value, error, problems, guess = self.score.cells
        return value, error, problems if self.tokens is None else f"{self.tokens:,} tokens", guess

    @property
    def label(self) -> str:
        """The stage and the name of the suite."""
        return f"{self.score.stage} {self.score.metric}"

    @property
    def cut(self) -> str:
        """The counts of cut prompts and answers for a table."""
        has_records = self.task not in TASKS or TASKS[self.task].kind != "bpb"
        return "not counted" if self.score.cuts is None and has_records else self.score.cuts or ""

    @property
    def asks(self) -> str:
        return TASKS[self.task].asks if self.task in TASKS else ""

    @property
    def reading(self) -> str:
        value, chance = self.score.value, self.score.chance
        if self.score.stderr is None or chance is None:
            return ""
        if chance == 0:
            tries = f", {self.passes[most]:.0%} in {most} tries" if (most := max(self.passes, default=1)) > 1 else ""
            return ("none solved" if value == 0 else f"{value:.0%} solved") + tries
        if abs(value - chance) <= _SIGNIFICANT_ERRORS * self.score.stderr:
            return "no better than guessing"
        return "better than guessing" if value > chance else "worse than guessing"


def list_scores(records: Mapping[str, StageRecord]) -> list[SuiteScore]:
    """Return the score of every suite of the finished evaluations."""
    results = {(result.stage, result.metric): result for result in list_results(records)}
    suites = []
    for stage in evaluation_stages():
        for name, task in _tasks(records[stage]).items() if stage in records else ():
            if (score := results.get((stage, name))) is not None:
                prefix, metrics = f"{name}.pass_at_", records[stage].metrics.items()
                passes = {int(key.removeprefix(prefix)): share for key, share in metrics if key.startswith(prefix)}
                tokens = records[stage].metrics.get(f"{name}.tokens")
                suites.append(SuiteScore(score, task, passes, None if tokens is None else int(tokens)))
    return suites


def describe_stages(records: Mapping[str, StageRecord]) -> list[str]:
    """Return a sentence for each finished stage: what it did, and with what outcome."""
    sentences = []
    for stage, record in records.items():
        remark = time_remark(record)
        marked = f" **{remark[0].upper()}{remark[1:]}**; {NOT_REPRODUCIBLE}." if remark else ""
        sentences.append(f"**{stage}** {STAGES[stage].outcome(record.metrics)}{marked}")
    return sentences


def _tasks(record: StageRecord) -> dict[str, str]:
    """Return the task of each suite by the suite's name; the task `{python: FILE}` is called `python`."""
    tasks = {}
    for key, value in record.recipe_fields.items():
        match key.split("."):
            case [record.stage, "suites", name, "task"]:
                tasks[name] = str(value)
            case [record.stage, "suites", name, "task", kind]:
                tasks[name] = kind
    return tasks
