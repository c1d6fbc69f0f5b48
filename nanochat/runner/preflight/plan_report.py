"""Shows a plan with the cache status of each stage: as text, as JSON, and as the answer to `--why`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from pydantic import JsonValue

from nanochat.data.files.selection.file_choice import distinct_names
from nanochat.data.ingest.pending import Conversion, plan_conversions
from nanochat.data.ingest.store import FOLDER
from nanochat.plan.quantities import show_bytes
from nanochat.plan.specs.spec import StageName
from nanochat.plan.text.render import StageStatus, plan_to_json, render_plan, titled_lines
from nanochat.plan.text.source_files import SourceUse, source_uses
from nanochat.plurals import list_names
from nanochat.runner.preflight.plan_checks import PlanChecks
from nanochat.runner.preflight.prepare import Prepared
from nanochat.runner.report.results import time_remark
from nanochat.runner.store import stage_cache
from nanochat.runner.store.stage_cache import CacheLookup, ResolvedStage, UnresolvedStage
from nanochat.storage.layout import stage_folders


def _statuses(lookups: Sequence[CacheLookup], selected: Collection[str], base: Path) -> dict[StageName, StageStatus]:
    """Return the status of each stage as the plan shows it. Stages that are not selected are skipped."""
    return {lookup.stage.name: _status(lookup, lookup.stage.name in selected, base) for lookup in lookups}


def _status(lookup: CacheLookup, is_selected: bool, base: Path) -> StageStatus:
    if not is_selected and lookup.action != "cached":
        return StageStatus("skip", "not selected")
    if isinstance(lookup, UnresolvedStage) and lookup.waits_for:
        may_be_cached = any(folder.stage == lookup.stage.name for folder in stage_folders(base))
        then = "; whether it is cached is known then" if may_be_cached else ""
        return StageStatus(lookup.action, lookup.reason + then)
    remark = time_remark(lookup.record) if isinstance(lookup, ResolvedStage) and lookup.record is not None else None
    return StageStatus(lookup.action, lookup.reason + (f"; {remark}" if remark else ""))


def plan_report_text(
    prepared: Prepared, lookups: Sequence[CacheLookup], selected: Collection[str], checks: PlanChecks | None = None
) -> str:
    """Return the plan as `nanochat-run plan` prints it. A run leaves out `checks`: it has made all of them."""
    text = render_plan(prepared.plan, _statuses(lookups, selected, prepared.base))
    if uses := _source_uses(prepared):
        text += f"\n{titled_lines('data', (use.describe() for use in uses))}\n"
    warnings = [warning for use in uses for warning in use.warnings]
    if warnings := [*warnings, *(checks.left_out if checks is not None else ())]:
        text += f"\n{titled_lines('warnings', warnings)}\n"
    if conversions := _conversions(prepared, lookups, selected):
        title = f"to convert before the first stage (under {prepared.base / FOLDER})"
        text += f"\n{titled_lines(title, map(_conversion_line, conversions))}\n"
    if prepared.problems:
        missing = "\n".join(f"  - {problem}" for problem in prepared.problems)
        text += f"\nmissing inputs (the plan is valid, but the cache cannot be checked without them)\n{missing}\n"
    if checks is not None and checks.unchecked:
        is_absent = any(reason.startswith("not ") for reason in checks.unchecked)
        until = f" (`{prepared.loaded.command('fetch')}` gets them, for this plan to check)" if is_absent else ""
        text += f"\n{titled_lines(f'data that only the run checks{until}', checks.unchecked)}\n"
    if checks is not None and checks.problems:
        problems = "\n".join(f"  - {problem}" for problem in checks.problems)
        text += f"\nproblems to fix before the run can start\n{problems}\n"
    return text


def data_warnings(prepared: Prepared) -> list[str]:
    """Return what the user should know about the data, such as notes that are not read, for a run without a plan."""
    return [warning for use in _source_uses(prepared) for warning in use.warnings]


def _source_uses(prepared: Prepared) -> list[SourceUse]:
    inputs = [item for stage in prepared.plan.stages for item in stage.inputs]
    return source_uses(inputs, base=prepared.base)


def plan_report_json(
    prepared: Prepared, lookups: Sequence[CacheLookup], selected: Collection[str], checks: PlanChecks | None = None
) -> dict[str, JsonValue]:
    """Return the plan as JSON values, with the fingerprint of each stage, null if it is not known yet."""
    content = plan_to_json(prepared.plan, _statuses(lookups, selected, prepared.base))
    content["fingerprints"] = {
        lookup.stage.name: lookup.identity.fingerprint if isinstance(lookup, ResolvedStage) else None
        for lookup in lookups
    }
    content["conversions"] = [
        {"source": x.source, "files": [str(path) for path in x.files], "disk_bytes": x.disk_bytes}
        for x in _conversions(prepared, lookups, selected)
    ]
    content["data"] = [
        {"source": use.source, "files": [str(path) for path in use.files.paths], **use.to_json()}
        for use in _source_uses(prepared)
    ]
    content["missing"] = list(prepared.problems)
    content["problems"] = [] if checks is None else list(checks.problems)
    content["unchecked"] = [] if checks is None else list(checks.unchecked)
    content["left_out"] = [] if checks is None else list(checks.left_out)
    return content


def _conversions(prepared: Prepared, lookups: Sequence[CacheLookup], selected: Collection[str]) -> list[Conversion]:
    stages = [lookup.stage for lookup in lookups if lookup.stage.name in selected and lookup.action != "cached"]
    return plan_conversions((source for stage in stages for source in stage.read_sources), base=prepared.base)


def _conversion_line(conversion: Conversion) -> str:
    names = list_names(distinct_names(conversion.files))
    return f"source `{conversion.source}`: {names}, about {show_bytes(conversion.disk_bytes)} of disk"


def explain_stage_text(explanation: dict[str, JsonValue]) -> str:
    """Return an explanation of `explain_stage` as `nanochat-run plan --why` prints it."""
    changes = explanation["changes"]
    assert isinstance(changes, list), "changes are a list of lines"
    why = str(explanation["why"])
    if changes and why.startswith(f"changed: {changes[0]}"):
        # The reason names the first changes, which the lines below name too.
        why, changes = (why, []) if len(changes) == 1 else ("changed:", changes)
    return "\n".join([f"{explanation['stage']}: {explanation['status']}, {why}", *(f"  {line}" for line in changes)])


def explain_stage(prepared: Prepared, lookups: Sequence[CacheLookup], stage: str) -> dict[str, JsonValue]:
    """Return why a stage is cached, resumes or runs, as JSON values; `changes` has a line for each changed field."""
    by_name: dict[str, CacheLookup] = {lookup.stage.name: lookup for lookup in lookups}
    lookup = by_name[stage]
    changes: list[str] = []
    name = prepared.plan.recipe_name
    if isinstance(lookup, ResolvedStage):
        if lookup.action != "cached":
            changes = stage_cache.explain_changes(lookup.identity, name, prepared.base) or []
    elif lookup.waits_for:
        changes = stage_cache.explain_own_changes(lookup.stage, name, prepared.base) or []
        changes += [f"{other}: {by_name[other].action}, {by_name[other].reason}" for other in lookup.stage.upstream]
    return {"stage": stage, "status": lookup.action, "why": lookup.reason, "changes": list(changes)}
