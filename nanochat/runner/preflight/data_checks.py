"""Check that data has the format its stage reads: columns, splits, rows, and held-out documents."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import assert_never

from nanochat.data.documents import Split
from nanochat.data.source_checks import check_documents
from nanochat.data.sources import SourceSpec, is_available_offline
from nanochat.errors import PreflightError
from nanochat.plan.plan import StagePlan
from nanochat.plan.specs import (
    BaseEvalSpec,
    BpbSuiteSpec,
    ChatEvalSpec,
    ChoiceSuiteSpec,
    CoreSuiteSpec,
    PretrainSpec,
    SftSpec,
    TokenizerSpec,
)
from nanochat.tasks.base_multiple_choice import check_choices
from nanochat.tasks.build import check_task
from nanochat.tasks.core.bundle import check_bundle

Check = tuple[SourceSpec, Callable[[], None]]


def check_inputs(stages: Sequence[StagePlan], base: Path, *, without: Collection[str] = ()) -> list[str]:
    """Return the problems with the data that the stages read, each one once.

    Sources that are not downloaded yet, and those named in `without`, are not checked.
    """
    problems: list[str] = []
    for stage in stages:
        for source, check in _checks(stage, base):
            if source.name in without or not is_available_offline(source, base=base):
                continue
            try:
                check()
            except PreflightError as error:
                problems.append(str(error))
    return list(dict.fromkeys(problems))


def _checks(stage: StagePlan, base: Path) -> Iterator[Check]:
    spec = stage.spec
    match spec:
        case TokenizerSpec():
            yield _documents(spec.source, ("train", "validation"), base)
        case PretrainSpec():
            validates = stage.execution.validate_every_steps is not None
            for item in spec.data:
                yield _documents(item.source, ("train", "validation") if validates else ("train",), base)
        case BaseEvalSpec():
            for suite in spec.suites.values():
                yield _base_suite(suite, base)
        case SftSpec():
            for part in spec.data:
                yield _task(part.task, part.source, part.split, base, max_examples=part.max_examples)
        case ChatEvalSpec():
            for task in spec.suites.values():
                yield _task(task.task, task.source, task.split, base)
        case _:
            assert_never(spec)


def _base_suite(suite: BpbSuiteSpec | ChoiceSuiteSpec | CoreSuiteSpec, base: Path) -> Check:
    match suite:
        case BpbSuiteSpec():
            return _documents(suite.source, (suite.split,), base)
        case ChoiceSuiteSpec():
            return suite.source, lambda: check_choices(suite.task, suite.source, suite.split, base=base)
        case CoreSuiteSpec():
            return suite.source, lambda: check_bundle(suite.source)
        case _:
            assert_never(suite)


def _documents(source: SourceSpec, splits: tuple[Split, ...], base: Path) -> Check:
    return source, lambda: check_documents(source, splits, base=base)


def _task(task: str, source: SourceSpec, split: str, base: Path, *, max_examples: int | None = None) -> Check:
    return source, lambda: check_task(task, source, split, base=base, max_examples=max_examples)
