"""Look up a stage in the cache: is it finished, can it resume from a checkpoint, or must it run, and why."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanochat.plan.fingerprint import Document, document, explain, fingerprint_document
from nanochat.plan.plan import INIT_FROM, Plan, StagePlan
from nanochat.runner.store.record import StageIdentity, StageRecord, read_identity, read_record
from nanochat.runner.store.run_catalog import list_runs
from nanochat.storage.layout import StageFolder, list_checkpoints, stage_folder, stage_folders

Action = Literal["cached", "resume", "run"]


@dataclass(frozen=True, kw_only=True)
class ResolvedStage:
    """A stage whose inputs are all known, so that its fingerprint and its folder are known too."""

    stage: StagePlan
    identity: StageIdentity
    folder: StageFolder
    record: StageRecord | None
    """The finished result, None if the stage has to run."""
    has_checkpoint: bool = False
    reason: str

    @property
    def action(self) -> Action:
        if self.record is not None:
            return "cached"
        return "resume" if self.has_checkpoint else "run"


@dataclass(frozen=True, kw_only=True)
class UnresolvedStage:
    """A stage whose inputs are not known yet. It will run, unless its inputs turn out to match a cached result."""

    stage: StagePlan
    reason: str
    waits_for: tuple[str, ...] = ()
    """Upstream stages that run first; empty if input files are missing."""
    action: Literal["run"] = "run"


CacheLookup = ResolvedStage | UnresolvedStage


def look_up_stage(
    stage: StagePlan, upstream_digests: Mapping[str, str], *, base: Path, recipe_name: str, is_forced: bool = False
) -> ResolvedStage:
    """Look up a stage whose inputs are all known. A forced stage runs even if a result is cached."""
    content = document(stage, upstream_digests)
    fingerprint = fingerprint_document(content)
    identity = StageIdentity(stage=stage.name, fingerprint=fingerprint, recipe_name=recipe_name, document=content)
    folder = stage_folder(base, stage.name, fingerprint)
    record, has_checkpoint = None, False
    step = newest_step(folder)
    if is_forced:
        reason = "forced"
    elif (found := read_record(folder)) is not None and found.fingerprint == identity.fingerprint:
        record, reason = found, f"finished, in {folder.path.relative_to(base)}"
    elif step is not None:
        has_checkpoint, reason = True, f"it was interrupted; the newest checkpoint is from step {step:,}"
    elif read_identity(folder) is not None:
        reason = "it was interrupted before anything was saved"
    elif (changes := explain_changes(identity, base)) is not None:
        shown = "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if len(changes) > 3 else "")
        reason = f"changed: {shown}"
    else:
        reason = "not computed yet"
    return ResolvedStage(
        stage=stage, identity=identity, folder=folder, record=record, has_checkpoint=has_checkpoint, reason=reason
    )


def look_up_plan(
    plan: Plan, *, base: Path, init_digests: Mapping[str, str], forced: Collection[str] = ()
) -> list[CacheLookup]:
    """Look up every stage of a plan, as far as its inputs are known before anything runs.

    `init_digests` holds the digest of the initial weights of each stage that has `init_from`.
    """
    digests: dict[str, str] = {}
    lookups: list[CacheLookup] = []
    for stage in plan.stages:
        if missing := tuple(name for name in stage.upstream if name not in digests):
            lookups.append(UnresolvedStage(stage=stage, reason=f"after {' and '.join(missing)}", waits_for=missing))
            continue
        known = digests | ({INIT_FROM: init_digests[stage.name]} if stage.name in init_digests else {})
        lookup = look_up_stage(stage, known, base=base, recipe_name=plan.recipe_name, is_forced=stage.name in forced)
        lookups.append(lookup)
        if lookup.record is not None:
            digests[stage.name] = lookup.record.output_digest
    return lookups


def newest_step(folder: StageFolder) -> int | None:
    """Return the step of the newest checkpoint folder, verified or not, or None if there is no checkpoint."""
    return max(list_checkpoints(folder.checkpoints), default=None)


def explain_changes(identity: StageIdentity, base: Path) -> list[str] | None:
    """Return what differs from the latest computation of this stage for the same recipe name, else the most similar.

    Returns None if the stage was never computed.
    """
    known = _identities(identity.stage, identity.recipe_name, base)
    others = [other for other in known if other.fingerprint != identity.fingerprint]
    return _smallest_changes(others, identity.document, identity.recipe_name)


def explain_own_changes(stage: StagePlan, recipe_name: str, base: Path) -> list[str] | None:
    """Return what differs in the stage's own fields and sources, ignoring upstream outputs, which are not known yet.

    Returns None if the stage was never computed.
    """
    content: Document = {**stage.identity, "sources": dict(stage.source_digests)}
    without_upstream = [
        other.model_copy(update={"document": {k: v for k, v in other.document.items() if k != "upstream"}})
        for other in _identities(stage.name, recipe_name, base)
    ]
    return _smallest_changes(without_upstream, content, recipe_name)


def _identities(stage: str, recipe_name: str, base: Path) -> list[StageIdentity]:
    """Return the identity of every computation of a stage. Runs of this recipe name come first, newest first."""
    runs = (run.state.folders(base) for run in reversed(list_runs(base, recipe_name)))
    in_runs = [folders[stage] for folders in runs if stage in folders]
    rest = [folder for folder in stage_folders(base) if folder.stage == stage]
    unique = dict.fromkeys([*in_runs, *rest])
    return [identity for folder in unique if (identity := read_identity(folder)) is not None]


def _smallest_changes(others: Sequence[StageIdentity], content: Document, recipe_name: str) -> list[str] | None:
    """Return the changes against the first computation with this recipe name, else against the most similar one."""
    if not others:
        return None
    same_name = [other for other in others if other.recipe_name == recipe_name][:1]
    return min((explain(other.document, content) for other in same_name or others), key=len)
