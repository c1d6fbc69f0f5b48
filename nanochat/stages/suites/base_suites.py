"""Prepares the suites of base_eval: bits per byte, multiple choice, CORE, and tasks of lm-evaluation-harness."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import assert_never

from nanochat.errors import StageError
from nanochat.evals.bits_per_byte import evaluate_bpb
from nanochat.evals.choice_tasks import evaluate_choices
from nanochat.evals.continuations import tokens_per_batch
from nanochat.evals.core_tasks import evaluate_core_task
from nanochat.evals.metrics import TaskScore, composite
from nanochat.evals.task_result import ExampleRecord
from nanochat.inference.batch_sizes import BPB_TOKENS, GENERATED_ROWS
from nanochat.inference.engine import Engine
from nanochat.model.dispatch import FastGPT
from nanochat.plan.specs.suites import (
    BaseSuiteSpec,
    BpbSuiteSpec,
    ChoiceSuiteSpec,
    CoreSuiteSpec,
    LmEvalSuiteSpec,
    QuestionsSuiteSpec,
)
from nanochat.stages.process.context import StageContext
from nanochat.stages.suites.held_out_text import held_out_batches
from nanochat.stages.suites.suite_runner import Suite, SuiteResult, Tick, suite_result
from nanochat.tasks.core_bundle import build_core_prompts, bundle_folder, read_bundle
from nanochat.tasks.custom.questions import read_choice_items
from nanochat.tasks.multiple_choice.base_models import ChoiceItem, build_choice_items
from nanochat.tasks.table import TASKS
from nanochat.tokenizer.bpe import Tokenizer


def prepare_base_suite(
    name: str, suite: BaseSuiteSpec, model: FastGPT, tokenizer: Tokenizer, context: StageContext
) -> Suite:
    """Read the suite's data and return the suite, ready to run; raise an error if it is missing, broken or empty."""
    match suite:
        case BpbSuiteSpec():
            return _prepare_bpb(name, suite, model, tokenizer, context)
        case ChoiceSuiteSpec():
            return _prepare_choices(name, suite, model, tokenizer, context)
        case CoreSuiteSpec():
            return _prepare_core(name, suite, model, tokenizer, context)
        case QuestionsSuiteSpec():
            items = read_choice_items(suite, base=context.base)
            chance = sum(1 / len(item.options) for item in items) / len(items)
            return _choice_suite(name, suite.task, items, model, tokenizer, context, chance=chance)
        case LmEvalSuiteSpec():
            return _prepare_lm_eval(name, suite, model, tokenizer, context)
        case _:
            assert_never(suite)


def _prepare_bpb(name: str, suite: BpbSuiteSpec, model: FastGPT, tokenizer: Tokenizer, context: StageContext) -> Suite:
    sequence_len = model.config.sequence_len
    batches = held_out_batches(
        suite.source,
        suite.split,
        tokenizer,
        sequence_len=sequence_len,
        max_tokens=suite.tokens,
        rows_per_batch=context.shrink_batch(max(1, BPB_TOKENS // sequence_len)),
        base=context.base,
    )

    def compute(tick: Tick) -> SuiteResult:
        result = evaluate_bpb(model, batches, tokenizer.token_bytes, on_batch=tick)
        if result.problem is not None:
            raise StageError(f"base_eval.suites.{name}: {result.problem}")
        sizes = {f"{name}.bytes": float(result.bytes), f"{name}.tokens": float(result.tokens)}
        return SuiteResult({name: result.bpb, **sizes})

    return Suite(name, compute, sum(batch.targets.size for batch in batches), "tokens")


def _prepare_choices(
    name: str, suite: ChoiceSuiteSpec, model: FastGPT, tokenizer: Tokenizer, context: StageContext
) -> Suite:
    items = build_choice_items(
        suite.task,
        suite.source,
        suite.split,
        base=context.base,
        num_fewshot=suite.num_fewshot,
        max_problems=suite.max_problems,
    )
    if not items:
        raise StageError(f"base_eval.suites.{name}: {suite.task} has no problem in source {suite.source.name}")
    return _choice_suite(name, suite.task, items, model, tokenizer, context, chance=TASKS[suite.task].chance)


def _choice_suite(
    name: str,
    task: str,
    items: Sequence[ChoiceItem],
    model: FastGPT,
    tokenizer: Tokenizer,
    context: StageContext,
    *,
    chance: float,
) -> Suite:
    tokens = context.shrink_batch(tokens_per_batch())

    def compute(tick: Tick) -> SuiteResult:
        result = evaluate_choices(
            model, tokenizer, items, task=task, chance=chance, max_tokens_per_batch=tokens, on_scored=tick
        )
        return suite_result(name, result)

    return Suite(name, compute, len(items))


def _prepare_core(
    name: str, suite: CoreSuiteSpec, model: FastGPT, tokenizer: Tokenizer, context: StageContext
) -> Suite:
    tasks = read_bundle(bundle_folder(suite.source, base=context.base))
    problems = [build_core_prompts(task, max_problems=suite.max_problems) for task in tasks]

    def compute(tick: Tick) -> SuiteResult:
        metrics: dict[str, float] = {}
        records: list[ExampleRecord] = []
        scores: list[TaskScore] = []
        for task, prompts in zip(tasks, problems, strict=True):
            result = evaluate_core_task(
                model,
                tokenizer,
                prompts,
                task=task.label,
                chance=task.chance,
                max_tokens_per_batch=context.shrink_batch(tokens_per_batch()),
                on_scored=functools.partial(_tick_from, len(records), tick),
            )
            metrics |= suite_result(f"{name}.{task.label}", result).metrics
            records.extend(result.records)
            scores.append(result.score)
        return SuiteResult({name: composite(scores)[1], **metrics}, records=tuple(records))

    return Suite(name, compute, sum(map(len, problems)))


def _tick_from(start: int, tick: Tick, amount: int) -> None:
    tick(start + amount)


def _prepare_lm_eval(
    name: str, suite: LmEvalSuiteSpec, model: FastGPT, tokenizer: Tokenizer, context: StageContext
) -> Suite:
    """Load the task and return the suite, ready to run. Raises a StageError if the library cannot load it.

    Metrics: those of `suite_result` for the main metric, and every metric of the library as `NAME.METRIC`. A main
    metric that is not a share of right answers, such as a perplexity, has no error and no part in `base_core`.
    """
    from nanochat.evals.harness.language_model import HarnessModel
    from nanochat.evals.harness.run_tasks import load_tasks, run_tasks

    tasks = load_tasks(suite.name, num_fewshot=suite.num_fewshot, max_problems=suite.max_problems)

    def compute(tick: Tick) -> SuiteResult:
        harness_model = HarnessModel(
            Engine(model, tokenizer),
            max_tokens_per_batch=context.shrink_batch(tokens_per_batch()),
            max_rows=context.shrink_batch(GENERATED_ROWS),
            on_scored=tick,
        )
        measured = run_tasks(tasks, harness_model, metric=suite.metric)
        metrics = {f"{name}.{key}": value for key, value in measured.metrics.items()}
        if measured.result is None:
            return SuiteResult({name: measured.main, **metrics}, records=measured.records)
        result = suite_result(name, measured.result)
        return SuiteResult(metrics | result.metrics, result.score, result.records)

    return Suite(name, compute, len(tasks))
