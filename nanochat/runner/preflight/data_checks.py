"""Check that data has the format its stage reads: columns, splits, rows, and held-out documents.

`check_inputs` checks what can be read now. `fetch_inputs` downloads and converts the rest before the first stage
begins, and checks it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import assert_never

from nanochat.data.ingest.pending import convertible_files, is_ready
from nanochat.data.ingest.store import copy_folders, unconverted_files
from nanochat.data.source_checks import check_documents
from nanochat.data.source_splits import Split
from nanochat.data.sources import SourceSpec, download_folder, fetch, find_damage
from nanochat.errors import InterruptedRun, PreflightError
from nanochat.plan.plan import StagePlan
from nanochat.plan.quantities import show_bytes
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
from nanochat.runner.display import Display
from nanochat.runner.process.convert_sources import convert_files
from nanochat.runner.process.interrupts import Interrupts
from nanochat.tasks.build import check_task
from nanochat.tasks.core import check_bundle
from nanochat.tasks.custom.questions import check_questions
from nanochat.tasks.multiple_choice.base_models import check_choices

Check = tuple[SourceSpec, Callable[[], None]]


def check_inputs(stages: Sequence[StagePlan], base: Path, *, without: Collection[str] = ()) -> list[str]:
    """Return the problems with the data that the stages read, without repetitions.

    Sources that are not downloaded or converted yet, and those named in `without`, are not checked.
    """
    problems: list[str] = []
    for stage in stages:
        for source, check in (_check_of(item, stage, base) for item in stage.inputs):
            if source.name in without:
                continue
            try:
                if is_ready(source, base=base):
                    check()
            except PreflightError as error:
                problems.append(str(error))
    return list(dict.fromkeys(problems))


def fetch_inputs(
    stages: Sequence[StagePlan],
    base: Path,
    add_needed: Callable[[Iterable[Path]], None],
    *,
    display: Display,
    interrupts: Interrupts,
) -> None:
    """Download and convert what the stages read, and check its format, which preflight could not do before.

    `add_needed` receives the folders with the data before they are used, so that `gc` keeps them. Raises as
    `fetch_sources` and `convert_files`, and PreflightError if a source does not have the format that its stage reads.
    """
    unchecked = [stage for stage in stages if not all(is_ready(source, base=base) for source in stage.read_sources)]
    sources = [source for stage in stages for source in stage.read_sources]
    add_needed(folder for source in sources if (folder := download_folder(source, base=base)) is not None)
    for stage in stages:
        fetch_sources(stage, base, display=display, interrupts=interrupts)
    if paths := convertible_files(sources, base=base):
        add_needed(copy_folders(paths, base=base))
        unconverted = unconverted_files(paths, base=base, are_loaded=True)
        for path, copy in zip(unconverted, copy_folders(unconverted, base=base), strict=True):
            if copy.exists():
                display.log_line(f"{path} is converted again: its copy {copy} is damaged, or of an earlier version")
        convert_files(unconverted, base, display=display, interrupts=interrupts)
    if problems := check_inputs(unchecked, base):
        raise PreflightError("\n".join(problems))


def fetch_sources(stage: StagePlan, base: Path, *, display: Display, interrupts: Interrupts) -> None:
    """Download the stage's sources that are not on disk yet. After a signal, the next attempt continues."""
    for source in stage.read_sources:

        def on_progress(done_bytes: int, total_bytes: int, name: str = source.name) -> None:
            if interrupts.count:
                raise InterruptedRun(f"stopped while downloading `{name}`, the downloaded part is kept")
            text = f"{show_bytes(done_bytes)} of {show_bytes(total_bytes)}"
            display.show_progress(f"download {name}", done_bytes / max(total_bytes, 1), text)

        offline = stage.execution.offline
        if (damage := find_damage(source, base=base, offline=offline)) is not None:
            display.log_line(f"source `{source.name}`: {damage}; downloading it again")
        fetch(source, base=base, offline=offline, progress=on_progress)
        display.clear_progress()


def _check_of(item: Input, stage: StagePlan, base: Path) -> Check:
    source = item.source
    match item:
        case WeightedSource():
            needs_validation = not STAGES[stage.name].trains or stage.execution.validate_every_steps is not None
            return _documents(source, ("train", "validation") if needs_validation else ("train",), base)
        case BpbSuiteSpec():
            return _documents(source, (item.split,), base)
        case ChoiceSuiteSpec():
            return source, lambda: check_choices(item.task, source, item.split, base=base)
        case CoreSuiteSpec():
            return source, lambda: check_bundle(source, base=base)
        case SftItem():
            return source, lambda: check_task(item.task, source, item.split, base=base, max_examples=item.max_examples)
        case ChatQuestionsSpec():
            return source, lambda: check_questions(item, item.grade, base=base)
        case QuestionsSuiteSpec():
            return source, lambda: check_questions(item, None, base=base)
        case ChatSuiteSpec():
            return source, lambda: check_task(item.task, source, item.split, base=base)
        case _:
            assert_never(item)


def _documents(source: SourceSpec, splits: tuple[Split, ...], base: Path) -> Check:
    return source, lambda: check_documents(source, splits, base=base)
