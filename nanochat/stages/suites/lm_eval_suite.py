"""Prepares a suite that lm-evaluation-harness asks and grades. Only this module, when called, imports the library."""

from __future__ import annotations

from nanochat.evals.continuations import tokens_per_batch
from nanochat.inference.batch_sizes import GENERATED_ROWS
from nanochat.inference.engine import Engine
from nanochat.model.dispatch import FastGPT
from nanochat.plan.specs.suites import LmEvalSuiteSpec
from nanochat.stages.process.context import StageContext
from nanochat.stages.suites.suite_runner import Suite, SuiteResult, Tick, suite_result
from nanochat.tokenizer.bpe import Tokenizer


def prepare_lm_eval(
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
