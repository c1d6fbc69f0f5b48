"""From a loaded recipe to a plan: sources, specifications, order, identity and estimate of each stage.

Pure: the only things asked of the world are source digests, through an argument. All that does not fit together is told
at once, located in the recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nanochat.data.sources import SourceSpec
from nanochat.model.config import GPTConfig
from nanochat.plan.derive.derivation import Derivation, SourceTokens
from nanochat.plan.derive.issues import PlanIssues
from nanochat.plan.derive.model_shape import derive_model
from nanochat.plan.estimate.device_rates import RATES, DeviceClass
from nanochat.plan.estimate.estimate import total
from nanochat.plan.estimate_notes import estimate_notes
from nanochat.plan.fingerprint import identity
from nanochat.plan.fitting import check_distributed
from nanochat.plan.plan import Plan, StagePlan
from nanochat.plan.specs import ExecutionSpec, PretrainSpec, StageName, StageSpec, TokenizerSpec, stage_sources
from nanochat.plan.stages import STAGES, estimate_stage
from nanochat.recipe.load import LoadedRecipe
from nanochat.recipe.schema import recipe as schema
from nanochat.recipe.schema.execution_sections import Run

Digests = Callable[[SourceSpec], str | None]


def compile_plan(
    loaded: LoadedRecipe,
    *,
    digests: Digests | None = None,
    source_tokens: SourceTokens | None = None,
    device_class: DeviceClass | None = None,
) -> Plan:
    """Return the plan of a recipe.

    Args:
        loaded: the validated recipe.
        digests: returns the sha256 of a source, or None if the source cannot be read. A stage that lacks a digest has
            no fingerprint.
        source_tokens: returns a source's training tokens where known; only pretraining by epochs asks.
        device_class: what times are estimated for where the recipe says `run.device: auto`; default a CPU.

    Raises:
        RecipeError: every impossibility, located.
    """
    recipe, issues = loaded.recipe, PlanIssues()
    sources = {name: source_spec(name, section) for name, section in recipe.sources.items()}
    config = _derive_config(recipe, issues)
    specs = _derive_specs(recipe, sources, config, issues, source_tokens) if not issues.problems else []
    if not issues.problems:
        check_distributed(recipe.run.distributed, specs, config, issues)
    if issues.problems:
        raise loaded.error([loaded.diagnose(one.path, one.code, one.message, one.advice) for one in issues.problems])
    digest_by_source = _read_digests(specs, digests)
    device = device_class_of(recipe.run.device, device_class)
    execution = execution_spec(recipe.run)
    stages = tuple(_plan_stage(recipe, spec, specs, config, execution, digest_by_source, device) for spec in specs)
    by_class = {
        name: total([estimate_stage(spec, execution, config, name) for spec in specs])
        for name in RATES
        if name == device or recipe.run.device != "cpu"
    }
    return Plan(
        recipe_name=recipe.name,
        description=recipe.description,
        seed=recipe.seed,
        stages=stages,
        totals=by_class[device],
        expectations=dict(recipe.expect),
        notes=(*issues.notes, *estimate_notes(stages, by_class, execution, device)),
    )


def source_spec(name: str, section: schema.Source) -> SourceSpec:
    """Return a source as the data room takes it, which also knows what is held out where the recipe does not say."""
    given = section.validation
    path = (section.path,) if isinstance(section.path, str) else section.path
    return SourceSpec(
        name=name,
        uri=section.uri,
        revision=section.revision,
        path=path,
        builtin=section.builtin,
        column=section.column,
        max_files=section.max_files,
        max_document_chars=section.max_document_chars,
        validation_shard=given.shard if given else None,
        validation_hash_frac=given.hash_frac if given else None,
    )


def execution_spec(run: Run) -> ExecutionSpec:
    """Return how stages are executed; `auto` for the micro-batch becomes None."""
    monitor = run.monitor
    return ExecutionSpec(
        device=run.device,
        dtype=run.dtype,
        micro_batch_size=None if run.micro_batch_size == "auto" else run.micro_batch_size,
        activation_checkpointing=run.activation_checkpointing,
        threads=run.threads,
        memory_limit_bytes=run.limits.memory,
        checkpoint_every_steps=run.checkpoint.every_steps,
        checkpoint_every_minutes=run.checkpoint.every_minutes,
        checkpoint_keep=run.checkpoint.keep,
        checkpoint_keep_when_done=run.checkpoint.keep_when_done,
        log_every_steps=monitor.log_every_steps,
        validate_every_steps=monitor.validate_every_steps,
        validate_tokens=monitor.validate_tokens,
        sample_every_steps=monitor.sample_every_steps,
        prompts=monitor.prompts,
        token_cache=run.data.token_cache,
        offline=run.offline,
        processes=run.distributed.processes,
        collectives=run.distributed.backend,
        hostfile=run.distributed.hostfile,
    )


def _derive_config(recipe: schema.Recipe, issues: PlanIssues) -> GPTConfig | None:
    if recipe.model is None:
        if recipe.pretrain is not None:
            issues.refuse(
                ("pretrain", "init_from"),
                "missing-stage",
                "`pretrain` needs the section `model`, also where it starts from given weights",
                advice="add the `model` section that the weights were made with",
            )
        return None
    if recipe.tokenizer is not None:
        vocab_size = recipe.tokenizer.vocab_size
    else:
        vocab_size = GPTConfig.vocab_size
        issues.note(f"vocabulary: that of the starting weights; sizes are shown for {vocab_size:,} pieces")
    config, problems = derive_model(recipe.model, vocab_size=vocab_size)
    issues.problems += problems
    return config


def _derive_specs(
    recipe: schema.Recipe,
    sources: Mapping[str, SourceSpec],
    config: GPTConfig | None,
    issues: PlanIssues,
    source_tokens: SourceTokens | None,
) -> list[StageSpec]:
    """Return the specs of the recipe's stages, in the order in which they run."""
    specs: list[StageSpec] = []
    for stage in STAGES.values():
        section = getattr(recipe, stage.name)
        if section is None:
            continue
        given = Derivation(
            recipe=recipe,
            sources=sources,
            config=config,
            pretrain=next((spec for spec in specs if isinstance(spec, PretrainSpec)), None),
            issues=issues,
            source_tokens=source_tokens,
        )
        specs.append(stage.derive(section, given))
    return specs


def _read_digests(specs: list[StageSpec], digests: Digests | None) -> dict[str, str]:
    if digests is None:
        return {}
    sources = {source.name: source for spec in specs for source in stage_sources(spec)}
    by_name = {name: digests(source) for name, source in sources.items()}
    return {name: digest for name, digest in by_name.items() if digest is not None}


def _plan_stage(
    recipe: schema.Recipe,
    spec: StageSpec,
    specs: list[StageSpec],
    config: GPTConfig | None,
    execution: ExecutionSpec,
    digests: Mapping[str, str],
    device: DeviceClass,
) -> StagePlan:
    sources = stage_sources(spec)
    return StagePlan(
        name=spec.stage,
        spec=spec,
        execution=execution,
        identity=identity(recipe, spec),
        upstream=_upstream(spec, specs),
        sources=sources,
        source_digests={source.name: digests[source.name] for source in sources if source.name in digests},
        estimate=estimate_stage(spec, execution, config, device),
    )


def _upstream(spec: StageSpec, specs: list[StageSpec]) -> tuple[StageName, ...]:
    if not isinstance(spec, TokenizerSpec) and spec.init_from is not None:
        return ()
    present = {one.stage for one in specs}
    return tuple(name for name in STAGES[spec.stage].upstream if name in present)[:1]


def device_class_of(device: str, assumed: DeviceClass | None) -> DeviceClass:
    """Return what `run.device` stands for where `auto` is assumed to mean `assumed`."""
    if device == "cpu":
        return "cpu"
    if device == "gpu":
        return "metal" if assumed == "metal" else "cuda"
    return assumed or "cpu"
