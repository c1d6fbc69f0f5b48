"""Stage base_eval: how well a pretrained model predicts: bits per byte, multiple choice, CORE, and samples."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import assert_never

from nanochat.errors import StageError
from nanochat.evals.bpb import evaluate_bpb
from nanochat.evals.choice_tasks import evaluate_choices
from nanochat.evals.core_tasks import evaluate_core_task
from nanochat.evals.metrics import Score, composite
from nanochat.evals.results import ExampleRecord
from nanochat.inference.engine import Engine
from nanochat.model.gpt import GPT
from nanochat.plan.specs import BaseEvalSpec, BaseSuiteSpec, BpbSuiteSpec, ChoiceSuiteSpec, CoreSuiteSpec, Job
from nanochat.stages.context import StageContext, StageResult, indented
from nanochat.stages.heldout import held_out_batches
from nanochat.stages.suites import Suite, SuiteResult, SuiteRunner, Tick, load_evaluated, task_metrics
from nanochat.storage.files import write_text
from nanochat.tasks.base_multiple_choice import build_choice_items
from nanochat.tasks.core.bundle import build_core_prompts, bundle_folder, read_bundle
from nanochat.tokenizer.bpe import Tokenizer

_BPB_TOKENS_PER_BATCH = 4096
"""Fixed, not the micro-batch: the last bits of a sum must not depend on how a run is executed."""


def run(job: Job, context: StageContext) -> StageResult:
    """Evaluate every suite; write `out/tables/SUITE.jsonl` and `out/samples.md`; return the metrics.

    Metrics: `SUITE` (bits per byte, accuracy, or CORE's centred mean), for accuracies also `SUITE.stderr`,
    `SUITE.centred`, `SUITE.n`; `base_core` and `base_core_centred`, the means over the multiple-choice suites.

    Raises:
        InterruptedRun: asked to stop; finished suites are kept.
        PreflightError, StageError: the model or a suite's data is missing or broken.
    """
    spec = job.spec
    assert isinstance(spec, BaseEvalSpec), f"base_eval got the job of {spec.stage}"
    model, tokenizer = load_evaluated(context, init_from=spec.init_from, stages=("pretrain",))
    runner = SuiteRunner(context, len(spec.suites))
    for name, suite in spec.suites.items():
        runner.run(name, functools.partial(_plan_suite, name, suite, model, tokenizer, context))
    metrics = {key: value for result in runner.done.values() for key, value in result.metrics.items()}
    scores = [result.score for result in runner.done.values() if result.score is not None]
    if scores:
        metrics["base_core"], metrics["base_core_centred"] = composite(scores)
    if spec.samples:
        text = sample_text(model, tokenizer, spec.samples, max_tokens=spec.sample_tokens)
        write_text(context.out / "samples.md", text)
    timings = {f"{name}.seconds": result.seconds for name, result in runner.done.items()}
    return StageResult(metrics, timings)


def sample_text(model: GPT, tokenizer: Tokenizer, prompts: Sequence[str], *, max_tokens: int) -> str:
    """Return greedy continuations of `prompts` as Markdown."""
    ids = [[tokenizer.bos_id, *tokenizer.encode(prompt)][: model.config.sequence_len - 1] for prompt in prompts]
    completions = Engine(model, tokenizer).complete(ids, max_tokens=max_tokens, use_calculator=False)
    texts = [tokenizer.decode([*prompt[1:], *completion]) for prompt, completion in zip(ids, completions, strict=True)]
    return "# How the model goes on\n\nGreedy; each block begins with its prompt.\n\n" + "\n\n".join(
        map(indented, texts)
    )


def _plan_suite(name: str, suite: BaseSuiteSpec, model: GPT, tokenizer: Tokenizer, context: StageContext) -> Suite:
    """Return the suite, ready to run.

    Raises:
        PreflightError, StageError: its data is missing, broken or empty.
    """
    match suite:
        case BpbSuiteSpec():
            return _plan_bpb(name, suite, model, tokenizer, base=context.base)
        case ChoiceSuiteSpec():
            return _plan_choices(name, suite, model, tokenizer, base=context.base)
        case CoreSuiteSpec():
            return _plan_core(name, suite, model, tokenizer)
        case _:
            assert_never(suite)


def _plan_bpb(name: str, suite: BpbSuiteSpec, model: GPT, tokenizer: Tokenizer, *, base: Path) -> Suite:
    sequence_len = model.config.sequence_len
    batches = held_out_batches(
        suite.source,
        suite.split,
        tokenizer,
        sequence_len=sequence_len,
        max_tokens=suite.tokens,
        rows_per_batch=max(1, _BPB_TOKENS_PER_BATCH // sequence_len),
        base=base,
    )

    def compute(tick: Tick) -> SuiteResult:
        found = evaluate_bpb(model, batches, tokenizer.token_bytes, on_batch=tick)
        sizes = {f"{name}.bytes": float(found.bytes), f"{name}.tokens": float(found.tokens)}
        return SuiteResult({name: found.bpb, **sizes})

    return Suite(name, compute, sum(batch.targets.size for batch in batches), "tokens")


def _plan_choices(name: str, suite: ChoiceSuiteSpec, model: GPT, tokenizer: Tokenizer, *, base: Path) -> Suite:
    items = build_choice_items(
        suite.task,
        suite.source,
        suite.split,
        base=base,
        num_fewshot=suite.num_fewshot,
        max_problems=suite.max_problems,
    )
    if not items:
        raise StageError(f"base_eval.suites.{name}: {suite.task} has no problem in source {suite.source.name}")

    def compute(tick: Tick) -> SuiteResult:
        found = evaluate_choices(model, tokenizer, items, task=suite.task, on_scored=tick)
        return task_metrics(name, found)

    return Suite(name, compute, len(items))


def _plan_core(name: str, suite: CoreSuiteSpec, model: GPT, tokenizer: Tokenizer) -> Suite:
    tasks = read_bundle(bundle_folder(suite.source))
    problems = [build_core_prompts(task, max_problems=suite.max_problems) for task in tasks]

    def compute(tick: Tick) -> SuiteResult:
        metrics: dict[str, float] = {}
        records: list[ExampleRecord] = []
        scores: list[Score] = []
        for task, prompts in zip(tasks, problems, strict=True):
            found = evaluate_core_task(
                model,
                tokenizer,
                prompts,
                task=task.label,
                chance=task.chance,
                on_scored=functools.partial(_tick_after, tick, len(records)),
            )
            metrics |= task_metrics(f"{name}.{task.label}", found).metrics
            records.extend(found.records)
            scores.append(found.score)
        return SuiteResult({name: composite(scores)[1], **metrics}, records=tuple(records))

    return Suite(name, compute, sum(map(len, problems)))


def _tick_after(tick: Tick, before: int, amount: int) -> None:
    tick(before + amount)
