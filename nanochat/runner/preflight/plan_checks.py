"""Checks the data of a plan as a run would, as far as that is quick, and names what only the run checks.

A plan must take no longer than a moment. So it reads local text and chats, in all at most as much as a run reads whole
of one source, and the beginnings of larger files. Of large parquet files it reads nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanochat.data.files.file_kinds import kind_of
from nanochat.data.files.file_sizes import are_small
from nanochat.data.ingest.pending import is_ready
from nanochat.data.sources.source_contents import resolve_files
from nanochat.data.sources.source_downloads import is_available_offline
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import PreflightError
from nanochat.runner.preflight.prepare import Prepared


@dataclass(frozen=True)
class PlanChecks:
    """Problems that a plan found in the data, and the data that it did not check.

    Attributes:
        problems: reasons why a run would be refused, besides the inputs that are missing.
        unchecked: the reasons why sources are only checked by a run, each with their names.
        left_out: sentences on rows and files that the run will leave out.
    """

    problems: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def check_plan(prepared: Prepared) -> PlanChecks:
    """Return the findings of a run's checks in the data that are quick to read."""
    sources = {source.name: source for stage in prepared.plan.stages for source in stage.read_sources}
    local = [source for source in sources.values() if source.builtin is None]
    reasons = dict(_find_unchecked(local, prepared.base))
    checked = {source.name for source in local} - reasons.keys()
    problems = prepared.find_other_tokenizer()
    left_out: list[str] = []
    if checked:
        from nanochat.runner.preflight.data_checks import check_inputs  # imported only if there is something to check

        without = sources.keys() - checked
        problems += check_inputs(prepared.plan.stages, prepared.base, without=without, notify=left_out.append)
    unchecked = {why: [name for name, reason in reasons.items() if reason == why] for why in reasons.values() if why}
    return PlanChecks(
        problems=tuple(problem for problem in problems if problem not in prepared.problems),
        unchecked=tuple(f"{why}: {', '.join(names)}" for why, names in unchecked.items()),
        left_out=tuple(dict.fromkeys(left_out)),
    )


def _find_unchecked(sources: Sequence[SourceSpec], base: Path) -> Iterator[tuple[str, str]]:
    """Yield the sources that are not checked with the reason, which is empty for those that are missing."""
    read_whole: tuple[Path, ...] = ()
    for source in sources:
        try:
            if not is_ready(source, base=base):
                yield source.name, "not converted" if is_available_offline(source, base=base) else "not downloaded"
                continue
            files = resolve_files(source, base=base)
        except PreflightError:
            yield source.name, ""
            continue
        if are_small(files):
            if not are_small((*read_whole, *files)):
                yield source.name, "large"
            else:
                read_whole += files
        elif any(kind.needs_pyarrow for file in files if (kind := kind_of(file)) is not None):
            yield source.name, "large parquet"
