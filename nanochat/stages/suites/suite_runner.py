"""The suites of an evaluation stage. Each finished suite is saved, so that a stopped stage resumes with the next one.

A finished suite has its records in `out/tables/NAME.jsonl` and its scores in `suites/NAME.json`, which is written last.
The stage's folder belongs to one fingerprint, so saved suites are never stale. The runner also copies suites there that
an earlier evaluation of the same model has computed in the same way (`runner.store.suite_cache`).
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import mlx.core as mx

from nanochat.checkpoint.model_folder import load_model_and_tokenizer
from nanochat.errors import InterruptedRun
from nanochat.evals.metrics import TaskScore, composite
from nanochat.evals.task_result import Cuts, ExampleRecord, TaskResult, count_cuts
from nanochat.model.dispatch import FastGPT
from nanochat.plan.quantities import show_score
from nanochat.plurals import several
from nanochat.stages.process.context import StageContext, StageResult, indented
from nanochat.storage.files import write_text
from nanochat.storage.suite_files import read_suite, write_suite
from nanochat.tokenizer.bpe import Tokenizer

_SHOWN_RECORDS = 3

Tick = Callable[[int], None]
"""Called with the amount of a suite that is done: examples, completions or tokens."""


@dataclass(frozen=True)
class SuiteResult:
    """The results of one suite."""

    metrics: dict[str, float]
    score: TaskScore | None = None
    """The score that counts towards the composite. Bits per byte and CORE have none."""
    records: tuple[ExampleRecord, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Suite:
    """A suite that is ready to run. `total` is the amount of work, in `unit`s."""

    name: str
    compute: Callable[[Tick], SuiteResult]
    total: int
    unit: str = "problems"


@dataclass
class SuiteRunner:
    """Runs suites in order, saves finished ones, reports progress, and stops between batches if asked to."""

    context: StageContext
    count: int
    """The number of suites."""
    done: dict[str, SuiteResult] = field(default_factory=dict)

    def run(self, name: str, prepare: Callable[[], Suite]) -> None:
        """Add the suite's saved result to `done`, or prepare and compute the suite and save its result."""
        stored = read_suite(self.context.folder, name)
        if stored is None and (path := self.context.folder.suite(name)).exists():
            self.context.notify_user(f"{name} runs again: {path} or its table is damaged")
        result = self._compute(prepare()) if stored is None else _parse(stored)
        self.done[name] = result
        self.context.log_line(f"{name}: {_summarise(name, result)}")

    def stage_result(self, composite_name: str) -> StageResult:
        """Return the metrics of all suites, their composite score if any suite has a score, and their times."""
        metrics = {key: value for result in self.done.values() for key, value in result.metrics.items()}
        scores = [result.score for result in self.done.values() if result.score is not None]
        if scores:
            metrics[composite_name], metrics[f"{composite_name}_centred"] = composite(scores)
        return StageResult(metrics, {f"{name}.seconds": result.seconds for name, result in self.done.items()})

    def _compute(self, suite: Suite) -> SuiteResult:
        started = time.monotonic()
        self._tick(suite, 0)
        result = suite.compute(lambda amount: self._tick(suite, amount))
        result = replace(result, seconds=time.monotonic() - started)
        if result.records:
            cuts = count_cuts(result.records)
            for note in _describe_cuts(cuts):
                self.context.notify_user(f"{suite.name}: {note}")
            result = replace(result, metrics=result.metrics | _cut_metrics(suite.name, cuts))
            lines = (json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in result.records)
            write_text(self.context.folder.table(suite.name), "".join(lines))
        score = asdict(result.score) if result.score is not None else None
        fields = {"metrics": result.metrics, "score": score, "seconds": result.seconds}
        write_suite(self.context.folder, suite.name, fields)
        return result

    def _tick(self, suite: Suite, amount: int) -> None:
        if self.context.should_stop():
            raise InterruptedRun(f"stopped while evaluating `{suite.name}`; finished suites are kept")
        fraction = (len(self.done) + min(amount / max(suite.total, 1), 1.0)) / max(self.count, 1)
        self.context.report_progress(fraction, f"{suite.name}: {amount:,}/{suite.total:,} {suite.unit}")


def suite_result(name: str, result: TaskResult) -> SuiteResult:
    """Return a task's result with the metrics `NAME`, `NAME.stderr`, `NAME.centred`, `NAME.n`, `NAME.pass_at_K`."""
    score = result.score
    metrics = {
        name: score.accuracy,
        f"{name}.stderr": score.stderr,
        f"{name}.centred": score.centred,
        f"{name}.n": float(score.n),
    }
    metrics |= {f"{name}.pass_at_{k}": value for k, value in result.pass_at}
    return SuiteResult(metrics, score, result.records)


def _cut_metrics(name: str, cuts: Cuts) -> dict[str, float]:
    counts = {"prompts_cut": cuts.prompts_cut, "examples_cut": cuts.examples_cut, "answers_cut": cuts.answers_cut}
    counts["ungraded"] = cuts.ungraded or None
    return {f"{name}.{key}": float(count) for key, count in counts.items() if count is not None}


def _describe_cuts(cuts: Cuts) -> Iterator[str]:
    """Yield a sentence for the user about each kind of cut that happened."""
    if cuts.prompts_cut:
        yield (
            f"{cuts.prompts_cut:,} of {several(cuts.problems, 'prompt')} did not fit into the context and lost "
            "their beginning"
        )
    if cuts.examples_cut:
        yield (
            f"{cuts.examples_cut:,} of {several(cuts.problems, 'problem')} had fewer solved examples than the "
            "recipe asks for: the data or the context has no room for more"
        )
    if cuts.answers_cut:
        yield f"{cuts.answers_cut:,} of {several(cuts.answers, 'answer')} had to stop at the limit of their length"
    if cuts.ungraded:
        yield (
            f"{cuts.ungraded:,} of {several(cuts.answers, 'answer')} could not be graded and score 0; "
            f"{cuts.first_problem}"
        )


def _summarise(name: str, result: SuiteResult) -> str:
    """Return a suite's result in a few words: the score with its error, the number of problems, and chance."""
    if result.score is None:
        return f"{result.metrics[name]:.4f}"
    score = result.score
    return f"{show_score(score.accuracy, score.stderr, score.n)}, chance {score.chance:.2g}"


def load_model_to_evaluate(context: StageContext, *, init_from: str | None) -> tuple[FastGPT, Tokenizer]:
    """Return the model and tokenizer to evaluate: those of `init_from`, or else of the first upstream stage."""
    dtype = mx.bfloat16 if context.runtime.dtype == "bfloat16" else mx.float32
    return load_model_and_tokenizer(context.model_to_start_from(init_from), dtype)


def sample_section(context: StageContext, name: str) -> str:
    """Return the first few records of a suite as Markdown."""
    with context.folder.table(name).open(encoding="utf-8") as file:
        records = [json.loads(line) for line in itertools.islice(file, _SHOWN_RECORDS)]
    blocks = [f"## {name}"]
    for record in records:
        outcome = "right" if record["correct"] else "wrong"
        blocks += [f"Problem {record['index']}, {outcome}:", indented(record["prompt"] + record["output"])]
        blocks += ["Expected:", indented(record["expected"])]
    return "\n\n".join(blocks) + "\n"


def _parse(fields: dict[str, Any]) -> SuiteResult:
    score = TaskScore(**fields["score"]) if fields["score"] is not None else None
    return SuiteResult(fields["metrics"], score, seconds=fields["seconds"])
