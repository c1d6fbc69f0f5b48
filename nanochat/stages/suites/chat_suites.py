"""Prepares the suites of chat_eval: tasks whose answers are letters, and tasks whose answers are generated."""

from __future__ import annotations

from nanochat.evals.chat_tasks import evaluate_categorical, evaluate_generative
from nanochat.evals.continuations import tokens_per_batch
from nanochat.evals.task_result import TaskResult
from nanochat.inference.batch_sizes import GENERATED_ROWS
from nanochat.inference.engine import Engine
from nanochat.inference.sampling import Sampling
from nanochat.plan.specs.suites import AnyChatSuiteSpec
from nanochat.stages.process.context import StageContext, derive_seed
from nanochat.stages.suites.suite_runner import Suite, SuiteResult, Tick, suite_result
from nanochat.stages.suites.suite_tasks import open_suite_task
from nanochat.tasks.custom.questions import Questions
from nanochat.tasks.table import TASKS
from nanochat.tasks.task import Task


def prepare_chat_suite(
    context: StageContext, engine: Engine, name: str, suite: AnyChatSuiteSpec, *, seed: int
) -> Suite:
    """Read the suite's data and return the suite, ready to run; raise an error if it is missing, broken or empty."""
    task = open_suite_task(suite, context, name, section="chat_eval.suites", seed=seed)

    def compute(tick: Tick) -> SuiteResult:
        suite_seed = derive_seed(seed, "chat_eval", name)
        return suite_result(name, _evaluate(context, engine, task, suite, seed=suite_seed, tick=tick))

    samples = suite.num_samples if TASKS[suite.task].kind == "generative" else 1
    return Suite(name, compute, len(task) * samples, "problems" if samples == 1 else "completions")


def _evaluate(
    context: StageContext, engine: Engine, task: Task, suite: AnyChatSuiteSpec, *, seed: int, tick: Tick
) -> TaskResult:
    if TASKS[suite.task].kind == "categorical":
        tokens = context.shrink_batch(tokens_per_batch())
        return evaluate_categorical(engine.model, engine.tokenizer, task, max_tokens_per_batch=tokens, on_scored=tick)
    return evaluate_generative(
        engine,
        task,
        num_samples=suite.num_samples,
        max_tokens=suite.max_tokens,
        sampling=Sampling(suite.temperature, suite.top_k),
        seed=seed,
        chance=task.chance if isinstance(task, Questions) else TASKS[suite.task].chance,
        max_rows=context.shrink_batch(GENERATED_ROWS),
        on_finished=tick,
    )
