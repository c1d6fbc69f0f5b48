"""Check before a run that this machine can isolate the programs that grading runs, and that the user's classes work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nanochat.errors import PreflightError
from nanochat.plan.plan import StagePlan
from nanochat.plan.specs.evaluation import ChatEvalSpec
from nanochat.plan.specs.suites import AnyChatSuiteSpec, PythonSuiteSpec
from nanochat.plan.specs.training import RlSpec
from nanochat.recipe.check.validation import FieldProblem
from nanochat.runner.preflight.prepare import Prepared
from nanochat.tasks.custom.python_task import check_python_task
from nanochat.tools.sandbox.run import find_isolation

_ADVICE = (
    "use a machine that can (Linux 5.13 or later, or macOS), leave the suite out, or set "
    "`run.accept_unisolated_programs: true`, which lets them read, change and delete your files and use the network"
)


def find_program_problems(prepared: Prepared, stages: Sequence[StagePlan]) -> Iterator[str]:
    """Yield, for each suite that runs programs, why they cannot be isolated or what is wrong with the user's class."""
    for stage in stages:
        accept = stage.execution.accept_unisolated_programs
        for where, suite in _chat_suites(stage):
            if not suite.runs_programs:
                continue
            origin = prepared.loaded.locate(FieldProblem((*where, "task"), "isolation", "")).origin
            try:
                find_isolation(accept_none=accept)
            except PreflightError as error:
                yield f"{origin}: {'.'.join(where)}: {error}; {_ADVICE}"
                continue
            if isinstance(suite, PythonSuiteSpec):
                try:
                    check_python_task(suite.file, accept_unisolated=accept)
                except PreflightError as error:
                    yield f"{origin}: {'.'.join(where)}: {error}"


def _chat_suites(stage: StagePlan) -> Iterator[tuple[tuple[str, ...], AnyChatSuiteSpec]]:
    """Yield the suites of chats that a stage runs, each with its path in the recipe."""
    for name, suite in stage.execution.chat_suites.items():
        yield ("run", "monitor", "evaluate", "chat_suites", name), suite
    if isinstance(stage.spec, ChatEvalSpec):
        for name, suite in stage.spec.suites.items():
            yield (stage.name, "suites", name), suite
    if isinstance(stage.spec, RlSpec):
        for place, suite in stage.spec.suites.items():
            yield (stage.name, *place), suite
