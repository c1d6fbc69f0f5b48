"""Check before a run that lm-evaluation-harness is installed and has the tasks that suites name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nanochat.plan.derive.lm_eval_tasks import INSTALL, harness_version, has_task
from nanochat.plan.plan import StagePlan
from nanochat.plan.specs.evaluation import BaseEvalSpec
from nanochat.plan.specs.suites import BaseSuiteSpec, LmEvalSuiteSpec
from nanochat.recipe.check.validation import FieldProblem
from nanochat.runner.preflight.prepare import Prepared


def find_lm_eval_problems(prepared: Prepared, stages: Sequence[StagePlan]) -> Iterator[str]:
    """Yield, for each suite with `task: lm_eval`, that the library or the library's task is missing."""
    for stage in stages:
        for where, suite in _suites(stage):
            if not isinstance(suite, LmEvalSuiteSpec):
                continue
            origin = prepared.loaded.locate(FieldProblem((*where, "name"), "lm-eval", "")).origin
            if harness_version() is None:
                yield f"{origin}: {'.'.join(where)}: lm-evaluation-harness is not installed: `{INSTALL}`"
            elif not suite.files and not has_task(suite.name):
                yield (
                    f"{origin}: lm_eval {harness_version()} has no task `{suite.name}`; `lm-eval ls tasks` "
                    "lists them, and the path of one of your own begins with `./` and ends with `.yaml`"
                )


def _suites(stage: StagePlan) -> Iterator[tuple[tuple[str, ...], BaseSuiteSpec]]:
    """Yield the suites of base models that a stage runs, each with its path in the recipe."""
    for name, suite in stage.execution.suites.items():
        yield ("run", "monitor", "evaluate", "suites", name), suite
    if isinstance(stage.spec, BaseEvalSpec):
        for name, suite in stage.spec.suites.items():
            yield (stage.name, "suites", name), suite
