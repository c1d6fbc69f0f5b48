"""The suites of an evaluation stage: each is computed once and kept, so that a stopped stage goes on with the next.

A finished suite is `suites/NAME.json` in the stage's folder, written last, and `out/tables/NAME.jsonl`, its records.
The stage's folder belongs to one fingerprint, so what is kept there is never stale; the runner also puts suites there
that an earlier evaluation of the same model has computed alike (`runner.suites`).
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import mlx.core as mx

from nanochat.checkpoint import load_model, load_tokenizer
from nanochat.errors import InterruptedRun
from nanochat.evals.metrics import Score
from nanochat.evals.results import ExampleRecord, TaskResult
from nanochat.model.gpt import GPT
from nanochat.plan.quantities import show_score
from nanochat.plan.specs import StageName
from nanochat.stages.context import StageContext, indented
from nanochat.storage.files import write_text
from nanochat.tokenizer.bpe import Tokenizer

_SHOWN_RECORDS = 3

Tick = Callable[[int], None]
"""Called with how much of a suite is done: examples, completions or tokens."""


@dataclass(frozen=True)
class SuiteResult:
    """What a suite adds to the stage's metrics, and its score where it counts towards the composite."""

    metrics: dict[str, float]
    score: Score | None = None
    records: tuple[ExampleRecord, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Suite:
    """A suite to run: how, and how much there is to do."""

    name: str
    compute: Callable[[Tick], SuiteResult]
    total: int
    unit: str = "problems"


@dataclass
class SuiteRunner:
    """Runs suites in order, keeps what is finished, reports progress, and stops between batches when asked to."""

    context: StageContext
    count: int
    """Number of suites in all."""
    done: dict[str, SuiteResult] = field(default_factory=dict)

    def run(self, name: str, plan: Callable[[], Suite]) -> SuiteResult:
        """Return the suite's result: what is kept from before, or what `plan`, which reads its data, computes.

        Raises:
            InterruptedRun: asked to stop; finished suites are kept.
        """
        path = self.context.folder / "suites" / f"{name}.json"
        result = _read(path) if path.is_file() else self._compute(plan(), path)
        self.done[name] = result
        self.context.log_line(f"{name}: {summary(name, result)}")
        return result

    def _compute(self, suite: Suite, path: Path) -> SuiteResult:
        started = time.monotonic()
        self._tick(suite, 0)
        found = suite.compute(lambda amount: self._tick(suite, amount))
        result = SuiteResult(found.metrics, found.score, found.records, time.monotonic() - started)
        _write_table(self.context.out / "tables" / f"{suite.name}.jsonl", found.records)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(_described(result), indent=1))
        return result

    def _tick(self, suite: Suite, amount: int) -> None:
        if self.context.should_stop():
            raise InterruptedRun(f"stopped while evaluating `{suite.name}`; finished suites are kept")
        fraction = (len(self.done) + min(amount / max(suite.total, 1), 1.0)) / max(self.count, 1)
        self.context.report_progress(fraction, f"{suite.name}: {amount:,}/{suite.total:,} {suite.unit}")


def task_metrics(name: str, result: TaskResult) -> SuiteResult:
    """Return a task's score as a suite's: `NAME`, `NAME.stderr`, `NAME.centred`, `NAME.n`, `NAME.pass_at_K`."""
    score = result.score
    metrics = {
        name: score.accuracy,
        f"{name}.stderr": score.stderr,
        f"{name}.centred": score.centred,
        f"{name}.n": float(score.n),
    }
    metrics |= {f"{name}.pass_at_{k}": value for k, value in result.pass_at}
    return SuiteResult(metrics, score, result.records)


def summary(name: str, result: SuiteResult) -> str:
    """Return a suite's result in a few words: the score with its error, the number of problems, and chance."""
    if result.score is None:
        return f"{result.metrics[name]:.4f}"
    score = result.score
    return f"{show_score(score.accuracy, score.stderr, score.n)}, chance {score.chance:.2g}"


def load_evaluated(
    context: StageContext, *, init_from: str | None, stages: tuple[StageName, ...]
) -> tuple[GPT, Tokenizer]:
    """Return the model and tokenizer that the stage evaluates: those of `init_from`, else of the first upstream stage.

    Raises:
        PreflightError: there is no model there.
        StageError: it cannot be read, or the job names no upstream stage.
    """
    if init_from is not None:
        folder = Path(init_from)
    else:
        folder = (context.upstream(*stages) or context.require_upstream(stages[-1])) / "model"
    dtype = mx.bfloat16 if context.runtime.dtype == "bfloat16" else mx.float32
    return load_model(folder, dtype), load_tokenizer(folder)


def sample_section(context: StageContext, name: str) -> str:
    """Return a few of a suite's records as Markdown."""
    path = context.out / "tables" / f"{name}.jsonl"
    with path.open(encoding="utf-8") as file:
        records = [json.loads(line) for line in itertools.islice(file, _SHOWN_RECORDS)]
    blocks = [f"## {name}"]
    for record in records:
        verdict = "right" if record["correct"] else "wrong"
        blocks += [f"Problem {record['index']}, {verdict}:", indented(record["prompt"] + record["output"])]
        blocks += ["Expected:", indented(record["expected"])]
    return "\n\n".join(blocks) + "\n"


def _described(result: SuiteResult) -> Mapping[str, object]:
    return {
        "metrics": result.metrics,
        "score": asdict(result.score) if result.score is not None else None,
        "seconds": result.seconds,
    }


def _read(path: Path) -> SuiteResult:
    described = json.loads(path.read_text(encoding="utf-8"))
    score = Score(**described["score"]) if described["score"] is not None else None
    return SuiteResult(described["metrics"], score, seconds=described["seconds"])


def _write_table(path: Path, records: Sequence[ExampleRecord]) -> None:
    if not records:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records))
