"""Builds the task of a chat suite from its specification: for chat_eval, for the export's check, and for rewards."""

from __future__ import annotations

from typing import assert_never

from nanochat.errors import StageError
from nanochat.plan.specs.suites import AnyChatSuiteSpec, ChatQuestionsSpec, ChatSuiteSpec, PythonSuiteSpec
from nanochat.stages.process.context import StageContext
from nanochat.tasks.build import build_task
from nanochat.tasks.custom.python_task import read_python_task
from nanochat.tasks.custom.questions import Grading, read_questions
from nanochat.tasks.task import Task
from nanochat.tools.sandbox.run import find_isolation


def build_suite_task(suite: AnyChatSuiteSpec, context: StageContext, *, seed: int) -> Task:
    """Return the problems of a suite, whose `grade` scores answers (`tasks.task.grade_completions`).

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
