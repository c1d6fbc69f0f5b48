"""Prepares the suites of chat_eval: tasks whose answers are letters, and tasks whose answers are generated."""

from __future__ import annotations

from typing import assert_never

from nanochat.errors import StageError
from nanochat.evals.chat_tasks import evaluate_categorical, evaluate_generative
from nanochat.evals.continuations import tokens_per_batch
from nanochat.evals.task_result import TaskResult
from nanochat.inference.batch_sizes import GENERATED_ROWS
from nanochat.inference.engine import Engine
from nanochat.inference.sampling import Sampling
from nanochat.plan.specs.suites import AnyChatSuiteSpec, ChatQuestionsSpec, ChatSuiteSpec, PythonSuiteSpec
from nanochat.stages.process.context import StageContext, derive_seed
from nanochat.stages.suites.suite_runner import Suite, SuiteResult, Tick, suite_result
from nanochat.tasks.base import Task
from nanochat.tasks.build import build_task
from nanochat.tasks.custom.python_task import read_python_task
from nanochat.tasks.custom.questions import Grading, Questions, read_questions
from nanochat.tasks.table import TASKS
from nanochat.tools.sandbox.run import find_isolation


def build_suite_task(suite: AnyChatSuiteSpec, context: StageContext, *, seed: int) -> Task:
    """Return the problems of a suite, whose `grade` scores answers (`tasks.base.grade_completions`).

    Raises:
        PreflightError: the source, the split or a column is missing, or this machine cannot isolate programs.
        StageError: a row does not have the task's form, or a class of the user's fails.
    """
    accept_unisolated = context.job.execution.accept_unisolated_programs
    match suite:
        case ChatQuestionsSpec():
            grading = Grading(rule=suite.grade, program=suite.program, accept_unisolated=accept_unisolated)
            return read_questions(suite, grading, base=context.base)
        case PythonSuiteSpec():
            return read_python_task(suite.file, max_problems=suite.max_problems, accept_unisolated=accept_unisolated)
        case ChatSuiteSpec():
            return build_task(
                suite.task,
                suite.source,
                suite.split,
                max_examples=suite.max_problems,
                seed=seed,
                base=context.base,
                choose="shuffled",
                accept_unisolated=accept_unisolated,
            )
        case _:
            assert_never(suite)


def open_suite_task(suite: AnyChatSuiteSpec, context: StageContext, name: str, *, section: str, seed: int) -> Task:
    """Return the problems of the suite `name` in a section of the recipe, and notify the user if it is not isolated.

    Raises as `build_suite_task`, and a StageError if there is no problem.
    """
    task = build_suite_task(suite, context, seed=seed)
    if len(task) == 0:
        raise StageError(f"{section}.{name}: {suite.task} has no problem")
    accept_unisolated = context.job.execution.accept_unisolated_programs
    if suite.runs_programs and find_isolation(accept_none=accept_unisolated) == "none":
        context.notify_user(f"{name}: this machine cannot isolate the model's programs; the recipe accepts that")
    return task


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
        engine.tokenizer,
        task,
        num_samples=suite.num_samples,
        max_tokens=suite.max_tokens,
        sampling=Sampling(suite.temperature, suite.top_k),
        seed=seed,
        chance=task.chance if isinstance(task, Questions) else TASKS[suite.task].chance,
        max_rows=context.shrink_batch(GENERATED_ROWS),
        on_finished=tick,
    )
