"""Runs suites on the model while it trains, and logs their scores. They only read the weights, so nothing changes.

A suite is prepared once and computes what the stages base_eval and chat_eval compute, with the current weights.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from nanochat.errors import InterruptedRun
from nanochat.inference.engine import Engine
from nanochat.model.dispatch import FastGPT
from nanochat.stages.process.context import StageContext
from nanochat.stages.suites.base_suites import prepare_base_suite
from nanochat.stages.suites.chat_suites import prepare_chat_suite
from nanochat.stages.suites.suite_runner import Suite, SuiteResult
from nanochat.stages.training.training_schedule import TrainingSchedule
from nanochat.storage.series import SUITE_PREFIX
from nanochat.tokenizer.bpe import Tokenizer
from nanochat.train.callbacks import TrainingPosition

SUITE_SECONDS = "train/suite_seconds"


@dataclass
class MonitoredSuites:
    """The suites of a stage's execution. `seed` is the stage's seed."""

    context: StageContext
    model: FastGPT
    tokenizer: Tokenizer
    schedule: TrainingSchedule
    seed: int
    scores: dict[str, float] = field(default_factory=dict)
    """The latest score of each suite."""

    @property
    def are_any(self) -> bool:
        """Whether there are suites to run."""
        return self.context.job.execution.has_suites

    @functools.cached_property
    def _prepared(self) -> Sequence[Suite]:
        execution = self.context.job.execution
        base = [
            prepare_base_suite(name, suite, self.model, self.tokenizer, self.context)
            for name, suite in execution.suites.items()
        ]
        engine = Engine(self.model, self.tokenizer)
        chats = [
            prepare_chat_suite(self.context, engine, name, suite, seed=self.seed)
            for name, suite in execution.chat_suites.items()
        ]
        return [*base, *chats]

    def run(self, position: TrainingPosition) -> None:
        """Run every suite and log its score, and the time of all of them."""
        started = time.monotonic()
        metrics: dict[str, float] = {}
        for suite in self._prepared:
            result = suite.compute(functools.partial(self._tick, position, suite))
            self.scores[suite.name] = result.metrics[suite.name]
            metrics |= _scores(suite.name, result)
        self.context.log_metrics(position.step, metrics)
        self.context.log_timings(position.step, {SUITE_SECONDS: time.monotonic() - started})
        self.context.log_line(f"step {position.step:,}: {self.describe()}")

    def describe(self) -> str:
        """Return the latest scores in a few words; empty before the first."""
        return ", ".join(f"{name} {score:.3g}" for name, score in self.scores.items())

    def seconds(self) -> float:
        """Return how long all suites took so far, also before a restart."""
        return sum(self.context.logged_timings(SUITE_SECONDS))

    def _tick(self, position: TrainingPosition, suite: Suite, amount: int) -> None:
        if self.context.should_stop():
            raise InterruptedRun(f"stopped while evaluating `{suite.name}` at step {position.step:,}, saved")
        step = self.schedule.describe_step(position.step)
        text = f"{step} · {suite.name}: {amount:,}/{suite.total:,} {suite.unit}"
        self.context.report_progress(self.schedule.fraction(position.step), text)


def _scores(name: str, result: SuiteResult) -> dict[str, float]:
    """Return a suite's score, its standard error and its scores at k attempts, by the names of the series."""
    shown = {
        key: value
        for key, value in result.metrics.items()
        if key in (name, f"{name}.stderr") or key.startswith(f"{name}.pass_at_")
    }
    return {f"{SUITE_PREFIX}{key}": value for key, value in shown.items()}
