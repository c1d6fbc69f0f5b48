"""Looks up a stage in the cache: whether it is finished, can resume from a checkpoint or must run, and why."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from nanochat.plan.fingerprint import document, explain, fingerprint_document
from nanochat.plan.plan import INIT_FROM, Plan, StagePlan
from nanochat.runner.store.last_batch import describe_last_batch
from nanochat.runner.store.locks import is_locked, read_owner
from nanochat.runner.store.record import StageIdentity, StageRecord, read_identity, read_record
from nanochat.runner.store.run_catalog import list_runs
from nanochat.runner.store.verification import ModelFiles, find_damage
from nanochat.storage.layout import StageFolder, list_checkpoints, stage_folder

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
    stage: StagePlan,
    upstream_digests: Mapping[str, str],
    *,
    base: Path,
    recipe_name: str,
    is_forced: bool = False,
    is_loaded: bool = False,
    is_held: bool = False,
) -> ResolvedStage:
    """Look up a stage whose inputs are all known. A forced stage runs even if a result is cached.

    With `is_held`, the caller holds the stage's lock, so no other process computes it.

    A result counts only if its files are as they were written. If a later stage is about to load it (`is_loaded`),
    their content is compared, else only their size and time.
    """
    content = document(stage, upstream_digests)
    fingerprint = fingerprint_document(content)
    identity = StageIdentity(stage=stage.name, fingerprint=fingerprint, document=content)
    folder = stage_folder(base, stage.name, fingerprint)
    looked_up = partial(ResolvedStage, stage=stage, identity=identity, folder=folder)
    if is_forced:
        return looked_up(record=None, reason="forced")
    damage, record = None, read_record(folder)
    if record is not None and record.fingerprint == fingerprint:
        damage = find_damage(folder, record, content_of=record.files if is_loaded else ())
        if damage is None:
            reason = f"finished, in {folder.path.relative_to(base)}"
            return looked_up(record=record, reason=reason)
    step = newest_step(folder)
    if damage is not None:
        reason = f"damaged: {damage}"
    elif not is_held and is_locked(folder):
        reason = f"{_holder(folder)} is computing it now"
    else:
        reason = _why_not_finished(identity, folder, step, recipe_name, base)
    reason += describe_last_batch(stage, folder)
    return looked_up(record=None, has_checkpoint=step is not None, reason=reason)


def _why_not_finished(
    identity: StageIdentity, folder: StageFolder, step: int | None, recipe_name: str, base: Path
) -> str:
    """Return why the folder of a stage holds no result of its own. `step` is that of the newest checkpoint."""
    if folder.record.exists():
        return f"damaged: {folder.record.name} cannot be read"
    if step is not None:
        return f"it was interrupted; the newest checkpoint is from step {step:,}"
    if folder.result.exists():
        return f"{folder.record.name} is missing"
    if read_identity(folder) is not None:
        return "it ended before anything was saved"
    if (changes := explain_changes(identity, recipe_name, base)) is not None:
        more = f"; and {len(changes) - 3} more" if len(changes) > 3 else ""
        return f"changed: {'; '.join(changes[:3])}{more}"
    return "not computed yet"


def look_up_plan(
    plan: Plan, *, base: Path, init_models: Mapping[str, ModelFiles], forced: Collection[str]
) -> list[CacheLookup]:
    """Look up every stage of a plan, as far as its inputs are known before anything runs.

    `init_models` holds the initial weights of each stage that has `init_from`.
    """
    digests: dict[str, str] = {}
    lookups: list[CacheLookup] = []
    for stage in plan.stages:
        if missing := tuple(name for name in stage.upstream if name not in digests):
            lookups.append(UnresolvedStage(stage=stage, reason=f"after {' and '.join(missing)}", waits_for=missing))
            continue
        known = digests | ({INIT_FROM: init_models[stage.name].digest} if stage.name in init_models else {})
        lookup = look_up_stage(stage, known, base=base, recipe_name=plan.recipe_name, is_forced=stage.name in forced)
        lookups.append(lookup)
        if lookup.record is not None:
            digests[stage.name] = lookup.record.output_digest
    return lookups


def _holder(folder: StageFolder) -> str:
    owner = read_owner(folder.lock)
    return "another process" if owner is None else f"process {owner.pid} on {owner.host}"


def newest_step(folder: StageFolder) -> int | None:
    """Return the step of the newest checkpoint folder, verified or not, or None if there is no checkpoint."""
    return max(list_checkpoints(folder.checkpoints), default=None)


def explain_changes(identity: StageIdentity, recipe_name: str, base: Path) -> list[str] | None:
    """Return the differences from this stage of the latest run with the recipe's name, None if no such run had it.

    Runs of other recipes do not count: what differs from them is not what the user changed.
    """
    earlier = _earlier_identities(identity.stage, recipe_name, base)
    other = next((other for other in earlier if other.fingerprint != identity.fingerprint), None)
    return None if other is None else explain(other.document, identity.document)


def explain_own_changes(stage: StagePlan, recipe_name: str, base: Path) -> list[str] | None:
    """Return the differences from this stage of the latest run with the recipe's name, in its own fields and sources.

    Outputs of upstream stages are left out, because they are not known yet. None if no such run had the stage.
    """
    other = next(_earlier_identities(stage.name, recipe_name, base), None)
    if other is None:
        return None
    without_upstream = {key: value for key, value in other.document.items() if key != "upstream"}
    return explain(without_upstream, {**stage.identity, "sources": dict(stage.source_digests)})


def _earlier_identities(stage: str, recipe_name: str, base: Path) -> Iterator[StageIdentity]:
    """Yield the identity of this stage in each run with the recipe's name, the newest first."""
    for run in reversed(list_runs(base, recipe_name)):
        folder = run.state.folders(base).get(stage)
        if folder is not None and (identity := read_identity(folder)) is not None:
            yield identity
