"""Checks before a run that its suites can be graded.

This machine must isolate the programs that grading runs, the user's classes must work, and lm-evaluation-harness must
have the tasks that suites name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nanochat.errors import PreflightError
from nanochat.plan.derive.lm_eval_tasks import INSTALL, harness_version, has_task
from nanochat.plan.plan import StagePlan
from nanochat.plan.specs.evaluation import BaseEvalSpec, ChatEvalSpec
from nanochat.plan.specs.suites import AnyChatSuiteSpec, BaseSuiteSpec, LmEvalSuiteSpec, PythonSuiteSpec
from nanochat.plan.specs.training import RlSpec
from nanochat.recipe.check.validation import FieldProblem
from nanochat.runner.preflight.prepare import Prepared
from nanochat.tasks.custom.python_task import check_python_task
from nanochat.tools.sandbox.run import find_isolation

_ADVICE = (
    "use a machine that can (Linux 5.13 or later, or macOS), leave the suite out, or set "
    "`run.accept_unisolated_programs: true`, which lets them read, change and delete your files and use the network"
)


def find_suite_problems(prepared: Prepared, stages: Sequence[StagePlan]) -> Iterator[str]:
    """Yield why suites of the stages cannot be graded on this machine."""
    for stage in stages:
        for where, suite in _suites(stage):
            problem = _find_problem(suite, accept_unisolated=stage.execution.accept_unisolated_programs)
            if problem is not None:
                field = "name" if isinstance(suite, LmEvalSuiteSpec) else "task"
                origin = prepared.loaded.locate(FieldProblem((*where, field), "suite", problem)).origin
                yield f"{origin}: {'.'.join(where)}: {problem}"


def _find_problem(suite: AnyChatSuiteSpec | BaseSuiteSpec, *, accept_unisolated: bool) -> str | None:
    if isinstance(suite, LmEvalSuiteSpec):
        if harness_version() is None:
            return f"lm-evaluation-harness is not installed: `{INSTALL}`"
        if not suite.files and not has_task(suite.name):
            return (
                f"lm_eval {harness_version()} has no task `{suite.name}`; `lm-eval ls tasks` lists them, and the path "
                "of one of your own begins with `./` and ends with `.yaml`"
            )
        return None
    if not getattr(suite, "runs_programs", False):
        return None
    try:
        find_isolation(accept_none=accept_unisolated)
    except PreflightError as error:
        return f"{error}; {_ADVICE}"
    try:
        if isinstance(suite, PythonSuiteSpec):
            check_python_task(suite.file, accept_unisolated=accept_unisolated)
    except PreflightError as error:
        return str(error)
    return None


def _suites(stage: StagePlan) -> Iterator[tuple[tuple[str, ...], AnyChatSuiteSpec | BaseSuiteSpec]]:
    """Yield the suites that a stage runs, each with its path in the recipe."""
    suite: AnyChatSuiteSpec | BaseSuiteSpec
    monitor = ("run", "monitor", "evaluate")
    for name, suite in stage.execution.suites.items():
        yield (*monitor, "suites", name), suite
    for name, suite in stage.execution.chat_suites.items():
        yield (*monitor, "chat_suites", name), suite
    if isinstance(stage.spec, BaseEvalSpec | ChatEvalSpec):
        for name, suite in stage.spec.suites.items():
            yield (stage.name, "suites", name), suite
    if isinstance(stage.spec, RlSpec):
        for place, suite in stage.spec.suites.items():
            yield (stage.name, *place), suite
