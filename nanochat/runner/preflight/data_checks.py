"""Checks that data has the format its stage reads: columns, splits, rows, and held-out documents."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import assert_never

from nanochat.data.ingest.pending import is_ready
from nanochat.data.source_checks import check_documents
from nanochat.data.source_splits import Split
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import PreflightError
from nanochat.plan.plan import StagePlan
from nanochat.plan.specs.inputs import Input, SftItem, WeightedSource
from nanochat.plan.specs.suites import (
    BpbSuiteSpec,
    ChatQuestionsSpec,
    ChatSuiteSpec,
    ChoiceSuiteSpec,
    CoreSuiteSpec,
    QuestionsSuiteSpec,
)
from nanochat.plan.stages import STAGES
from nanochat.tasks.build import check_task
from nanochat.tasks.core_bundle import check_bundle
from nanochat.tasks.custom.questions import check_questions
from nanochat.tasks.multiple_choice.base_models import check_choices

Check = tuple[SourceSpec, Callable[[], None]]


def check_inputs(
    stages: Sequence[StagePlan],
    base: Path,
    *,
    without: Collection[str] = (),
    notify: Callable[[str], None] = lambda note: None,
) -> list[str]:
    """Return the problems with the data that the stages read, without repetitions. `notify` receives notes on bad rows.

    Sources that are not downloaded or converted yet, and those named in `without`, are not checked.
    """
    problems: list[str] = []
    for stage in stages:
        for source, check in (_check_of(item, stage, base, notify) for item in stage.inputs):
            if source.name in without:
                continue
            try:
                if is_ready(source, base=base):
                    check()
            except PreflightError as error:
                problems.append(str(error))
    return list(dict.fromkeys(problems))


def _check_of(item: Input, stage: StagePlan, base: Path, notify: Callable[[str], None]) -> Check:
    source = item.source
    match item:
        case WeightedSource():
            needs_validation = not STAGES[stage.name].trains or stage.execution.validate_every_steps is not None
            splits: tuple[Split, ...] = ("train", "validation") if needs_validation else ("train",)
            return source, lambda: check_documents(source, splits, base=base, notify=notify)
        case BpbSuiteSpec():
            return source, lambda: check_documents(source, (item.split,), base=base, notify=notify)
        case ChoiceSuiteSpec():
            return source, lambda: check_choices(item.task, source, item.split, base=base)
        case CoreSuiteSpec():
            return source, lambda: check_bundle(source, base=base)
        case SftItem():
            return source, lambda: check_task(
                item.task, source, item.split, base=base, max_examples=item.max_examples, notify=notify
            )
        case ChatQuestionsSpec():
            return source, lambda: check_questions(item, item.grade, base=base)
        case QuestionsSuiteSpec():
            return source, lambda: check_questions(item, None, base=base)
        case ChatSuiteSpec():
            return source, lambda: check_task(item.task, source, item.split, base=base, notify=notify)
        case _:
            assert_never(item)
