"""Prepares a recipe for planning and running: compiles it, resolves its inputs, and looks it up in the cache."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from nanochat.data.files.content_checks import document_lines
from nanochat.data.files.digests import LineFilter
from nanochat.data.sources.source_contents import digest
from nanochat.data.sources.source_spec import SourceSpec, describe
from nanochat.errors import PreflightError, RecipeError
from nanochat.plan.compile import compile_plan
from nanochat.plan.estimate.device_classes import DeviceClass
from nanochat.plan.plan import Plan, StagePlan
from nanochat.recipe.load import LoadedRecipe
from nanochat.runner.preflight.crop_estimate import crop_notes
from nanochat.runner.preflight.hub_pins import with_pins
from nanochat.runner.preflight.source_sizes import count_examples, held_out_chars, text_chars
from nanochat.runner.preflight.starting_weights import find_other_tokenizer, find_starting_weights
from nanochat.runner.store.stage_cache import CacheLookup, UnresolvedStage, look_up_plan
from nanochat.runner.store.verification import ModelFiles

_NVIDIA = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A compiled recipe with its resolved inputs."""

    base: Path
    loaded: LoadedRecipe
    plan: Plan
    device_class: DeviceClass
    init_models: Mapping[str, ModelFiles]
    """The initial weights of each stage that has `init_from`."""
    problems: tuple[str, ...] = ()
    """Inputs that are missing. While there are any, the state of the cache is unknown."""

    def check_sources(self, stage: StagePlan) -> None:
        """Raise a PreflightError if the data that a stage reads have changed since the recipe was prepared."""
        for source in stage.sources:
            if _digest(source, self.base) != stage.source_digests[source.name]:
                raise PreflightError(f"{describe(source)} has changed since this run began; run the same command again")

    def find_other_tokenizer(self) -> list[str]:
        """Return that pretraining starts from weights with a different tokenizer, as far as that is known."""
        if "pretrain" not in self.init_models or self.loaded.recipe.tokenizer is None:
            return []
        return list(find_other_tokenizer(self.init_models["pretrain"].folder, self.look_up_cache()))

    def look_up_cache(self, forced: Collection[str] = ()) -> list[CacheLookup]:
        """Return, for each stage, whether it is cached, resumes or runs."""
        if self.problems:
            return [UnresolvedStage(stage=stage, reason="some inputs are missing") for stage in self.plan.stages]
        return look_up_plan(self.plan, base=self.base, init_models=self.init_models, forced=forced)


def prepare(loaded: LoadedRecipe, base: Path, *, mac_bytes: int | None = None) -> Prepared:
    """Return the compiled plan of a recipe, with the digests of its sources and the initial weights of its stages.

    With `mac_bytes`, the plan estimates time and memory for a Mac with this much memory. Inputs that are missing are
    listed in `problems`. Raises RecipeError if no plan can be made of the recipe, and PreflightError if
    its lock file cannot be read.
    """
    loaded = with_pins(loaded, base)
    device: DeviceClass = "metal" if mac_bytes is not None else guess_device_class()
    if device == "metal" and mac_bytes is None:
        import psutil  # here, because no other machine needs it for a plan

        mac_bytes = int(psutil.virtual_memory().total)
    problems: list[str] = []

    def read_digest(source: SourceSpec) -> str | None:
        try:
            return _digest(source, base)
        except PreflightError as error:
            problems.extend(str(error).splitlines())
            return None

    starts = find_starting_weights(loaded.recipe, base)
    plan = compile_plan(
        loaded,
        digests=read_digest,
        device_class=device,
        memory_bytes=mac_bytes,
        text_chars=lambda source: text_chars(source, base=base),
        held_out_chars=lambda source: held_out_chars(source, base=base),
        count_examples=lambda item: count_examples(item, base=base),
        start_models=starts.configs,
    )
    return Prepared(
        base=base,
        loaded=loaded,
        plan=replace(plan, notes=(*plan.notes, *crop_notes(plan, base))),
        device_class=device,
        init_models=starts.models,
        problems=(*problems, *starts.problems),
    )


def _digest(source: SourceSpec, base: Path) -> str:
    return digest(source, base=base, lines=_usable_lines(source))


def _usable_lines(source: SourceSpec) -> LineFilter | None:
    """Return the filter of a source's usable lines; None for rows of other tasks, or without a path on this machine."""
    if source.path is None:
        return None
    if source.read_as == "text":
        return document_lines(source.column)
    if source.read_as != "chats":
        return None
    from nanochat.tasks.conversations import conversation_lines  # imported late: few recipes plan with local chats

    return conversation_lines(source)


def guess_device_class() -> DeviceClass:
    """Return the device that `device: auto` will probably choose on this machine, without importing MLX."""
    if sys.platform == "darwin":
        return "metal"
    return "cuda" if _NVIDIA.exists() else "cpu"


def select_stages(
    plan: Plan, *, only: str | None = None, first: str | None = None, last: str | None = None
) -> frozenset[str]:
    """Return the names of the stages to run: `only` that one, or those from `first` to `last`.

    Raises RecipeError if the recipe has no such stage, if `first` comes after `last`, or if one comes beside `only`.
    """
    if only is not None and (beside := [f"--{word} {x}" for word, x in (("from", first), ("until", last)) if x]):
        raise RecipeError(f"--only {only} and {' '.join(beside)} cannot both be followed; leave one of them out")
    names: list[str] = [stage.name for stage in plan.stages]
    for given in (only, first, last):
        if given is not None and given not in names:
            raise RecipeError(f"the recipe {plan.recipe_name} has no stage `{given}`; it has: {', '.join(names)}")
    if only is not None:
        return frozenset([only])
    start = names.index(first) if first is not None else 0
    stop = names.index(last) + 1 if last is not None else len(names)
    if start >= stop:
        raise RecipeError(f"--from {first} comes after --until {last}: nothing would run")
    return frozenset(names[start:stop])
