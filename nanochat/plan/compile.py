"""Compiles a loaded recipe into a plan: the order of its stages, and the specification, identity and estimate of each.

Pure: digests of sources come in through an argument. All problems of the recipe are reported together, each with its
place in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType

from nanochat.data.sources.source_spec import SourceSpec
from nanochat.model.config import GPTConfig
from nanochat.plan.derive.derivation import Derivation
from nanochat.plan.derive.execution import derive_monitored, execution_spec
from nanochat.plan.derive.issues import PlanIssues
from nanochat.plan.derive.model_shape import derive_recipe_model
from nanochat.plan.derive.start_model import check_pretrain_start
from nanochat.plan.estimate.dataset_sizes import (
    ExampleCount,
    TextChars,
    builtin_chars,
    builtin_held_out_chars,
    known_examples,
)
from nanochat.plan.estimate.device_classes import RATES, DeviceClass, usable_bytes
from nanochat.plan.estimate.estimate import Estimate, total
from nanochat.plan.estimate.text_sizes import TextSizes, find_text_sizes
from nanochat.plan.fingerprint import identity
from nanochat.plan.fitting import check_distributed
from nanochat.plan.plan import Plan, StagePlan
from nanochat.plan.recipe_sources import source_specs
from nanochat.plan.specs.execution import ExecutionSpec
from nanochat.plan.specs.job import StageSpec, stage_sources
from nanochat.plan.specs.spec import StageName
from nanochat.plan.specs.training import PretrainSpec, TokenizerSpec
from nanochat.plan.stages import STAGES, estimate_stage
from nanochat.plan.text.estimate_notes import (
    estimate_notes,
    held_out_notes,
    memory_notes,
    repetition_notes,
)
from nanochat.plan.text.mixture_notes import mixture_notes
from nanochat.recipe.load import LoadedRecipe
from nanochat.recipe.parsing.diagnostics import LocatedRecipeError
from nanochat.recipe.schema import recipe as schema

Digests = Callable[[SourceSpec], str | None]


def compile_plan(
    loaded: LoadedRecipe,
    *,
    digests: Digests | None = None,
    device_class: DeviceClass | None = None,
    memory_bytes: int | None = None,
    text_chars: TextChars = builtin_chars,
    held_out_chars: TextChars = builtin_held_out_chars,
    count_examples: ExampleCount = known_examples,
    start_models: Mapping[str, GPTConfig] = MappingProxyType({}),
) -> Plan:
    """Return the plan of a recipe. The message of a RecipeError lists every problem with its place.

    Args:
        digests: returns the sha256 of a source, None if it cannot be read. A stage without it has no fingerprint.
        device_class: the device to estimate times for if the recipe says `run.device: auto`; default: a CPU.
        memory_bytes: the memory of that device, if the plan should say how many rows fit into it.
        text_chars, held_out_chars: return the size of a source's text; by default that of built-in sources.
        count_examples: returns the number of examples of a task of `sft`; default: those known without the data.
        start_models: the models that stages with `init_from` start from, by stage, as far as they are known.
    """
    recipe = loaded.effective
    specs, executions, notes = _derive(loaded, start_models)
    device = device_class_of(recipe.run.device, device_class)
    execution = execution_spec(recipe.run)
    available_bytes = None if memory_bytes is None else _share_of_memory(execution, device, memory_bytes)
    source_digests = _read_digests(specs, digests)
    sizes = find_text_sizes(specs, executions, text_chars, held_out_chars)
    models = _stage_models(specs, start_models)
    estimates_on = partial(_estimate, specs, executions, models, sizes)
    estimates = estimates_on(device, execution.memory_limit_bytes or available_bytes)
    stages = _plan_stages(recipe, specs, executions, models, source_digests, estimates)
    others = [name for name in RATES if name != device and recipe.run.device != "cpu"]
    totals = {name: total(estimates_on(name, execution.memory_limit_bytes)) for name in others}
    totals[device] = total(estimates)
    return Plan(
        recipe_name=recipe.name,
        description=recipe.description,
        seed=recipe.seed,
        stages=stages,
        totals=totals[device],
        expectations=dict(recipe.expect),
        notes=(
            *loaded.warnings(),
            *notes,
            *estimate_notes(stages, totals, execution, device),
            *(memory_notes(stages, device, memory_bytes, available_bytes) if memory_bytes and available_bytes else ()),
            *_data_notes(stages, sizes, count_examples),
        ),
    )


def _data_notes(stages: Sequence[StagePlan], sizes: TextSizes, count_examples: ExampleCount) -> list[str]:
    """Return notes on how often the data are read, and on data that may be too few."""
    return [
        *held_out_notes(stages, sizes.held_out),
        *repetition_notes(stages, sizes.training),
        *mixture_notes(stages, count_examples, sizes.training),
    ]


def _derive(
    loaded: LoadedRecipe, start_models: Mapping[str, GPTConfig]
) -> tuple[list[StageSpec], dict[StageName, ExecutionSpec], list[str]]:
    """Return the specifications of the stages, how each is executed, and the notes. An error lists all problems."""
    recipe, issues = loaded.effective, PlanIssues()
    config = derive_recipe_model(recipe, issues, knows_start="pretrain" in start_models)
    if config is not None and (start := start_models.get("pretrain")) is not None and not issues.problems:
        check_pretrain_start(recipe, start, config, issues)
    given = Derivation(
        recipe=recipe, sources=source_specs(recipe), config=config, start_models=start_models, issues=issues
    )
    execution = execution_spec(recipe.run)
    monitored: Mapping[str, ExecutionSpec] = {}
    specs = _derive_specs(given) if not issues.problems else []
    if not issues.problems:
        monitored = derive_monitored(execution, _after(given, specs))
    if not issues.problems:
        check_distributed(recipe.run.distributed, specs, config, issues)
    if issues.problems:
        raise LocatedRecipeError(map(loaded.locate, issues.problems))
    return specs, {spec.stage: monitored.get(spec.stage, execution) for spec in specs}, issues.notes


def _derive_specs(given: Derivation) -> list[StageSpec]:
    """Return the specifications of the recipe's stages, in the order in which they run."""
    specs: list[StageSpec] = []
    for stage in STAGES.values():
        section = getattr(given.recipe, stage.name)
        if section is None:
            continue
        specs.append(stage.derive(section, _after(given, specs)))
    return specs


def _after(given: Derivation, specs: Sequence[StageSpec]) -> Derivation:
    """Return what a stage is derived from after the stages of `specs`."""
    return replace(given, pretrain=next((spec for spec in specs if isinstance(spec, PretrainSpec)), None))


def _estimate(
    specs: Sequence[StageSpec],
    executions: Mapping[StageName, ExecutionSpec],
    models: Mapping[str, GPTConfig | None],
    sizes: TextSizes,
    device: DeviceClass,
    limit_bytes: int | None,
) -> list[Estimate]:
    """Return the estimate of each stage, within a memory limit."""
    limit = {"memory_limit_bytes": limit_bytes}
    return [
        estimate_stage(spec, executions[spec.stage].model_copy(update=limit), models[spec.stage], device, sizes)
        for spec in specs
    ]


def _read_digests(specs: list[StageSpec], digests: Digests | None) -> dict[str, str]:
    if digests is None:
        return {}
    sources = {source.name: source for spec in specs for source in stage_sources(spec)}
    by_name = {name: digests(source) for name, source in sources.items()}
    return {name: digest for name, digest in by_name.items() if digest is not None}


def _share_of_memory(execution: ExecutionSpec, device: DeviceClass, memory_bytes: int) -> int:
    """Return how many bytes `micro_batch_size: auto` will use in each process, on a device of this memory."""
    return usable_bytes(device, memory_bytes) // (1 if device == "cuda" else execution.processes_here)


def _stage_models(specs: Sequence[StageSpec], start_models: Mapping[str, GPTConfig]) -> dict[str, GPTConfig | None]:
    """Return the model of each stage: the recipe's, that of its starting weights, or that of an upstream stage."""
    models: dict[str, GPTConfig | None] = {}
    for spec in specs:
        if isinstance(spec, PretrainSpec):
            start = start_models.get(spec.stage)
            models[spec.stage] = spec.model if start is None else replace(spec.model, vocab_size=start.vocab_size)
        elif not isinstance(spec, TokenizerSpec) and spec.init_from is not None:
            models[spec.stage] = start_models.get(spec.stage)
        else:
            models[spec.stage] = next((models[name] for name in STAGES[spec.stage].upstream if name in models), None)
    return models


def _plan_stages(
    recipe: schema.Recipe,
    specs: list[StageSpec],
    executions: Mapping[StageName, ExecutionSpec],
    models: Mapping[str, GPTConfig | None],
    digests: Mapping[str, str],
    estimates: Sequence[Estimate],
) -> tuple[StagePlan, ...]:
    return tuple(
        StagePlan(
            name=spec.stage,
            spec=spec,
            execution=executions[spec.stage],
            model=models[spec.stage],
            identity=identity(recipe, spec),
            upstream=_upstream(spec, specs),
            sources=(sources := stage_sources(spec)),
            source_digests={source.name: digests[source.name] for source in sources if source.name in digests},
            estimate=estimate,
        )
        for spec, estimate in zip(specs, estimates, strict=True)
    )


def _upstream(spec: StageSpec, specs: list[StageSpec]) -> tuple[StageName, ...]:
    if not isinstance(spec, TokenizerSpec) and spec.init_from is not None:
        return ()
    present = [other.stage for other in specs]
    if STAGES[spec.stage].exports:
        return tuple(name for name in present if name != spec.stage)
    return tuple(name for name in STAGES[spec.stage].upstream if name in present)[:1]


def device_class_of(device: str, assumed: DeviceClass | None) -> DeviceClass:
    """Return the class of device that `run.device` means; `auto` means `assumed`, or a CPU."""
    if device == "cpu":
        return "cpu"
    if device == "gpu":
        return "metal" if assumed == "metal" else "cuda"
    return assumed or "cpu"
