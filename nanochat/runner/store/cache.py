"""Whether a stage is done, can go on, or must run, and why: judged from its folder and what the plan says of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanochat.plan.fingerprint import Document, document, explain, fingerprint_document
from nanochat.plan.plan import Plan, StagePlan
from nanochat.runner.store.record import StageIdentity, StageRecord, read_identity, read_record
from nanochat.runner.store.runs import list_runs
from nanochat.storage.layout import StageFolder, stage_folder, stage_folders

Action = Literal["cached", "resume", "run", "waits"]
_STEP = re.compile(r"(\d+)$")


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What will happen to a stage. `waits`: a stage before it runs first, so its own inputs are not known yet."""

    stage: StagePlan
    action: Action
    reason: str
    identity: StageIdentity | None = None
    folder: StageFolder | None = None
    record: StageRecord | None = None


def judge_stage(
    stage: StagePlan,
    upstream_digests: Mapping[str, str],
    *,
    base: Path,
    recipe_name: str,
    forced: bool = False,
) -> Judgement:
    """Return what will happen to a stage whose inputs are all known."""
    content = document(stage, upstream_digests)
    identity = StageIdentity(
        stage=stage.name,
        fingerprint=fingerprint_document(content),
        recipe_name=recipe_name,
        document=content,
    )
    folder = stage_folder(base, stage.name, identity.fingerprint)
    action, reason, record = _judge_folder(folder, identity, base=base, forced=forced)
    return Judgement(stage=stage, action=action, reason=reason, identity=identity, folder=folder, record=record)


def _judge_folder(
    folder: StageFolder, identity: StageIdentity, *, base: Path, forced: bool
) -> tuple[Action, str, StageRecord | None]:
    record = read_record(folder)
    if forced:
        return "run", "forced", None
    if record is not None and record.fingerprint == identity.fingerprint:
        return "cached", f"done in {folder.path.relative_to(base)}", record
    step = newest_step(folder)
    if step is not None:
        return "resume", f"stopped before its end; the newest checkpoint is of step {step:,}", None
    if read_identity(folder) is not None:
        return "run", "stopped before anything was saved", None
    return "run", why_new(identity, base), None


def judge_plan(
    plan: Plan,
    *,
    base: Path,
    init_digests: Mapping[str, str],
    forced: frozenset[str] = frozenset(),
) -> list[Judgement]:
    """Return what will happen to each stage of a plan, as far as it can be known before anything runs.

    `init_digests` holds the digest of the starting weights of each stage that has `init_from`.
    """
    digests: dict[str, str] = {}
    judged = []
    for stage in plan.stages:
        missing = [name for name in stage.upstream if name not in digests]
        if missing:
            judged.append(Judgement(stage=stage, action="waits", reason=f"runs after {' and '.join(missing)}"))
            continue
        known = digests | ({"init_from": init_digests[stage.name]} if stage.name in init_digests else {})
        found = judge_stage(stage, known, base=base, recipe_name=plan.recipe_name, forced=stage.name in forced)
        judged.append(found)
        if found.record is not None:
            digests[stage.name] = found.record.output_digest
    return judged


def newest_step(folder: StageFolder) -> int | None:
    """Return the step of the newest checkpoint folder, verified or not; None where there is none."""
    if not folder.checkpoints.is_dir():
        return None
    steps = [
        int(match[1])
        for entry in folder.checkpoints.iterdir()
        if entry.is_dir() and not entry.name.startswith(".") and (match := _STEP.search(entry.name))
    ]
    return max(steps, default=None)


def why_new(identity: StageIdentity, base: Path) -> str:
    """Return in a line why nothing in the cache serves: what changed against the nearest computation of the stage."""
    changes = changes_against_nearest(identity, base)
    if changes is None:
        return "not computed yet"
    shown = "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if len(changes) > 3 else "")
    return f"changed: {shown}"


def changes_against_nearest(identity: StageIdentity, base: Path) -> list[str] | None:
    """Return what differs from the last computation of this stage for a recipe of this name, else the most similar one.

    None where the stage was never computed.
    """
    others = [
        found
        for found in _identities(identity.stage, identity.recipe_name, base)
        if found.fingerprint != identity.fingerprint
    ]
    return _nearest_changes(others, identity.document, identity.recipe_name)


def own_changes(stage: StagePlan, recipe_name: str, base: Path) -> list[str] | None:
    """Return what differs in the stage's own fields and sources, for one whose upstream outputs are not known yet.

    None where the stage was never computed.
    """
    content: Document = {**stage.identity, "sources": dict(stage.source_digests)}
    others = _identities(stage.name, recipe_name, base)
    without_upstream = [
        found.model_copy(update={"document": {k: v for k, v in found.document.items() if k != "upstream"}})
        for found in others
    ]
    return _nearest_changes(without_upstream, content, recipe_name)


def _identities(stage: str, recipe_name: str, base: Path) -> list[StageIdentity]:
    """Return what computations of a stage were made of: those in runs of this name first, the newest run first."""
    in_runs = [
        StageFolder(base / entry.folder)
        for run in reversed(list_runs(base, recipe_name))
        for entry in run.state.stages
        if entry.stage == stage and entry.folder is not None
    ]
    rest = [folder for folder in stage_folders(base) if folder.stage == stage]
    folders = dict.fromkeys([*in_runs, *rest])
    return [found for folder in folders if (found := read_identity(folder)) is not None]


def _nearest_changes(others: Sequence[StageIdentity], content: Document, recipe_name: str) -> list[str] | None:
    """Return the changes against the first of the same recipe's computations, else against the most similar one."""
    if not others:
        return None
    same_name = [found for found in others if found.recipe_name == recipe_name]
    if same_name:
        return explain(same_name[0].document, content)
    return min((explain(found.document, content) for found in others), key=len)


def forced_stages(names: Sequence[str], plan: Plan) -> frozenset[str]:
    """Return the stages to run again; `all` means every stage of the plan."""
    return frozenset(stage.name for stage in plan.stages) if "all" in names else frozenset(names)
