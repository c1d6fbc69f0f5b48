"""The plan together with what the cache says of each stage, as text, as JSON, and as the answer to `--why`."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pydantic import JsonValue

from nanochat.plan.render import StageStatus, plan_to_json, render_plan
from nanochat.plan.specs import StageName
from nanochat.runner.preflight.prepare import Prepared
from nanochat.runner.store.cache import Judgement, changes_against_nearest, own_changes

_WORDS = {"cached": "cached", "resume": "resume", "run": "run", "waits": "run"}


def statuses(judged: Sequence[Judgement], selected: Collection[str]) -> dict[StageName, StageStatus]:
    """Return each stage's status in the words of the plan; stages that are not selected are skipped."""
    shown = {}
    for judgement in judged:
        word = _WORDS[judgement.action]
        if judgement.stage.name not in selected and judgement.action != "cached":
            word = "skip"
        reason = judgement.reason if word != "skip" else "not asked for"
        if judgement.action == "waits" and word != "skip":
            reason += "; whether an earlier result serves is known then"
        shown[judgement.stage.name] = StageStatus(word, reason)
    return shown


def plan_report_text(prepared: Prepared, judged: Sequence[Judgement], selected: Collection[str]) -> str:
    """Return the plan as printed by `nanochat-run plan`."""
    text = render_plan(prepared.plan, statuses(judged, selected))
    if prepared.problems:
        missing = "\n".join(f"  - {problem}" for problem in prepared.problems)
        text += f"\nnot here yet (the plan holds, but nothing is known about the cache)\n{missing}\n"
    return text


def plan_report_json(
    prepared: Prepared, judged: Sequence[Judgement], selected: Collection[str]
) -> dict[str, JsonValue]:
    """Return the plan as JSON values, with fingerprints where they are known."""
    content = plan_to_json(prepared.plan, statuses(judged, selected))
    content["fingerprints"] = {j.stage.name: j.identity.fingerprint if j.identity else None for j in judged}
    content["missing"] = list(prepared.problems)
    return content


def explain_stage(prepared: Prepared, judged: Sequence[Judgement], stage: str) -> str:
    """Return why a stage runs or does not, down to the field that changed, a finding a line."""
    judgement = next(j for j in judged if j.stage.name == stage)
    lines = [f"{stage}: {_WORDS[judgement.action]}, {judgement.reason}"]
    identity = judgement.identity
    if identity is not None and judgement.action != "cached":
        changes = changes_against_nearest(identity, prepared.base)
        lines += [f"  {change}" for change in changes or ()]
    if judgement.action == "waits":
        lines += _own_changes(prepared, judged, judgement)
    return "\n".join(lines)


def _own_changes(prepared: Prepared, judged: Sequence[Judgement], judgement: Judgement) -> list[str]:
    """Return what changed in a stage's own fields and upstream, for one whose inputs are not known yet."""
    lines = [f"  {change}" for change in own_changes(judgement.stage, prepared.plan.recipe_name, prepared.base) or ()]
    for name in judgement.stage.upstream:
        before = next(j for j in judged if j.stage.name == name)
        lines.append(f"  {name}: {_WORDS[before.action]}, {before.reason}")
    return lines
