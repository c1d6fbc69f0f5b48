"""Reads results from the metrics of stages, with error, number of problems and chance, and checks those in `expect`."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanochat.plan.quantities import show_score, show_value
from nanochat.plan.stages import evaluation_stages
from nanochat.plurals import several
from nanochat.runner.store.record import StageIdentity, StageRecord

if TYPE_CHECKING:
    from nanochat.tracking.run_view import Expectation

_LINE_METRICS = 6
"""How many metrics the line of a stage shows that is not an evaluation."""
_COMPANION = re.compile(r"^(?P<metric>.+)\.(?:stderr|n|centred|prompts_cut|examples_cut|answers_cut|ungraded)$")
"""Metrics that qualify another one. They are shown beside it, not as results of their own."""
_QUALITY = re.compile(r"loss|bpb|bytes_per_token|score|reward")
"""Metrics that measure the output of a tokenizer or training stage. They are shown first."""
SKIPPED_METRICS = ("skipped_steps", "refused_conversations", "dropped_conversations", "cut_conversations")
"""Metrics that count what was left out. They are shown last, if they are not 0."""
_CUTS = {
    "prompts_cut": ("prompt cut", "prompts cut"),
    "answers_cut": ("answer cut", "answers cut"),
    "examples_cut": ("with fewer examples", "with fewer examples"),
    "ungraded": ("answer not graded", "answers not graded"),
}
"""Metrics that count what was cut in a suite or could not be graded, and what to call it."""

_CONDITION = re.compile(r"^\s*(<=|>=|==|<|>)\s*(\S+)\s*$")
_COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq}


@dataclass(frozen=True, kw_only=True)
class Result:
    """A metric of a stage. Error, count and chance are None unless it is a share of problems."""

    stage: str
    metric: str
    value: float
    stderr: float | None = None
    count: int | None = None
    """The number of problems."""
    chance: float | None = None
    """The score of a guess."""
    cuts: str | None = None
    """Counts of cut prompts and answers, as text: empty if nothing was cut, None if the result does not count them."""

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """The cells of a table: value, standard error, number of problems, and score of a guess."""
        error, guess = ("" if value is None else f"{value:.3g}" for value in (self.stderr, self.chance))
        return show_value(self.value), error, "" if self.count is None else f"{self.count:,}", guess

    def __str__(self) -> str:
        return f"{self.metric} {show_score(self.value, self.stderr, self.count, remark=self.cuts)}"


def list_results(records: Mapping[str, StageRecord]) -> list[Result]:
    """Return every result of the finished stages. Those that measure the quality of the stage's output come first."""
    results = []
    for stage, record in records.items():
        metrics = record.metrics
        for name in sorted(metrics, key=lambda metric: not _is_quality(stage, metric)):
            match = _COMPANION.match(name)
            if match is None or match["metric"] not in metrics:
                results.append(_result(stage, name, metrics))
    return results


def metrics_by_name(records: Mapping[str, StageRecord]) -> dict[str, float]:
    """Return every metric by `stage.metric`, the name that `expect` in a recipe uses."""
    return {f"{stage}.{name}": value for stage, record in records.items() for name, value in record.metrics.items()}


def time_remark(record: StageIdentity) -> str | None:
    """Return that a stage trained for a wall time, and so is not reproducible. None for all others."""
    if record.minutes is None:
        return None
    return f"trained for {several(record.minutes, 'minute')} of wall time: not reproducible"


def result_line(record: StageRecord) -> str:
    """Return the most important results of a stage as the end of a line, starting with a colon."""
    results = list_results({record.stage: record})
    main = [result for result in results if result.metric not in SKIPPED_METRICS]
    if record.stage in evaluation_stages():  # all scores, but not how much text was evaluated
        main = [result for result in main if not result.metric.endswith((".bytes", ".tokens"))]
    else:
        main = main[:_LINE_METRICS]
    skipped = [result for result in results if result.metric in SKIPPED_METRICS and result.value > 0]
    return f": {', '.join(map(str, [*main, *skipped]))}" if main or skipped else ""


def chance_level(value: float, centred: float) -> float | None:
    """Return the score of a guess, from centred = (value - chance) / (1 - chance). None if centred is 1."""
    return round((value - centred) / (1 - centred), 4) if centred < 1 else None


def _is_quality(stage: str, metric: str) -> bool:
    return stage in evaluation_stages() or _QUALITY.search(metric) is not None


def _result(stage: str, name: str, metrics: Mapping[str, float]) -> Result:
    value, count, centred = metrics[name], metrics.get(f"{name}.n"), metrics.get(f"{name}.centred")
    return Result(
        stage=stage,
        metric=name,
        value=value,
        stderr=metrics.get(f"{name}.stderr"),
        count=None if count is None else int(count),
        chance=None if centred is None else chance_level(value, centred),
        cuts=_cuts(name, metrics),
    )


def _cuts(name: str, metrics: Mapping[str, float]) -> str | None:
    counts = {kind: int(metrics[f"{name}.{kind}"]) for kind in _CUTS if f"{name}.{kind}" in metrics}
    return ", ".join(f"{n:,} {_CUTS[kind][n != 1]}" for kind, n in counts.items() if n) if counts else None


def check_expectations(expect: Mapping[str, str], metrics: Mapping[str, float]) -> list[Expectation]:
    """Return each condition with its outcome. The keys of both mappings are `stage.metric`.

    A condition on a metric that is missing or NaN is not met.
    """
    from nanochat.tracking.run_view import Expectation  # here, because plans do without tracking

    checked = []
    for metric, condition in expect.items():
        match = _CONDITION.match(condition)
        assert match is not None, f"the recipe schema accepted the condition {condition!r}"
        value = metrics.get(metric)
        is_met = value is not None and _COMPARE[match[1]](value, float(match[2]))
        checked.append(Expectation(metric=metric, condition=condition.strip(), value=value, is_met=is_met))
    return checked
