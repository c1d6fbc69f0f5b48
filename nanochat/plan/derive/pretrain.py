"""The specifications of the tokenizer and pretrain stages: horizon, batch, schedule and weight decay."""

from __future__ import annotations

from nanochat.model.config import GPTConfig
from nanochat.optim import schedules
from nanochat.optim.groups import OptimizerConfig
from nanochat.optim.schedules import ScheduleConfig
from nanochat.plan.derive import scaling
from nanochat.plan.derive.derivation import Derivation
from nanochat.plan.derive.issues import PlanIssues
from nanochat.plan.specs.inputs import WeightedSource
from nanochat.plan.specs.training import PretrainSpec, TokenizerSpec
from nanochat.plurals import several
from nanochat.recipe.merge.tree import KeyPath
from nanochat.recipe.schema import recipe as schema


def derive_tokenizer(section: schema.Tokenizer, given: Derivation) -> TokenizerSpec:
    """Return the specification of the tokenizer stage."""
    fields = section.model_dump(exclude={"source"})
    return TokenizerSpec(source=given.sources[section.source], seed=given.recipe.seed, **fields)


def derive_pretrain(section: schema.Pretrain, given: Derivation) -> PretrainSpec:
    """Return the specification of the pretrain stage. Sources are sorted by name."""
    config, issues = given.config, given.issues
    assert config is not None, "a recipe with `pretrain` and without `model` was refused before"
    mixture = sorted(section.data.items())
    tokens = _planned_tokens(section.horizon, config, issues)
    tokens_per_step = _tokens_per_step(section, config, tokens, issues)
    minutes, steps = section.horizon.minutes, section.horizon.steps
    if minutes is None:
        steps = steps or scaling.steps_for_tokens(tokens or 1, tokens_per_step)
    optimizer = OptimizerConfig(**section.optimizer.model_dump())
    if section.hand_on == "best":
        given.check_best("pretrain", steps)
    return PretrainSpec(
        model=config,
        data=tuple(WeightedSource(source=given.sources[name], weight=item.weight) for name, item in mixture),
        steps=steps,
        minutes=minutes,
        tokens_per_step=tokens_per_step,
        optimizer=optimizer,
        schedule=_derive_schedule(section, steps, issues),
        weight_decay=_weight_decay(
            optimizer, config, _tokens_of_steps(steps, tokens_per_step, config), tokens_per_step, issues
        ),
        buffer_documents=section.buffer_documents,
        long_documents=section.long_documents,
        hand_on=section.hand_on,
        init_from=section.init_from,
        seed=given.recipe.seed,
    )


def _planned_tokens(horizon: schema.Horizon, config: GPTConfig, issues: PlanIssues) -> float | None:
    """Return the tokens of a horizon, or None if it is given in steps or minutes."""
    if horizon.steps is not None or horizon.minutes is not None:
        return None
    if horizon.epochs is None:
        return scaling.horizon_tokens(config, tokens=horizon.tokens, ratio=horizon.ratio, flops=horizon.flops)
    issues.refuse(
        ("pretrain", "horizon", "epochs"),
        "unknown-size",
        "`epochs` needs the number of training tokens in the sources, which is not known before they are tokenized",
        advice="give the horizon of pretraining as `steps`, `tokens`, `ratio` or `flops`; an epoch has about as many "
        "tokens as the text has bytes, divided by the `bytes_per_token` that the tokenizer stage reports",
    )
    return None


def _tokens_per_step(section: schema.Pretrain, config: GPTConfig, tokens: float | None, issues: PlanIssues) -> int:
    if section.tokens_per_step != "auto":
        issues.check_whole_rows(("pretrain", "tokens_per_step"), section.tokens_per_step, config.sequence_len)
        return section.tokens_per_step
    # The law needs a number of tokens. A horizon in steps has none before the batch is known, and one in minutes has
    # another one on each device. The default ratio replaces both.
    planned = tokens or scaling.DEFAULT_RATIO * config.num_scaling_parameters()
    choice = scaling.auto_tokens_per_step(config, planned)
    issues.note(choice.note)
    return int(choice.value)


def _tokens_of_steps(steps: int | None, tokens_per_step: int, config: GPTConfig) -> float:
    if steps is None:  # a horizon in minutes; the same replacement as for the batch
        return scaling.DEFAULT_RATIO * config.num_scaling_parameters()
    return steps * tokens_per_step


def _weight_decay(
    optimizer: OptimizerConfig, config: GPTConfig, tokens: float, tokens_per_step: int, issues: PlanIssues
) -> float:
    if optimizer.weight_decay is not None:
        return optimizer.weight_decay
    choice = scaling.muon_weight_decay(optimizer, config, tokens=tokens, tokens_per_step=tokens_per_step)
    issues.note(choice.note)
    return choice.value


def _derive_schedule(section: schema.Pretrain, given_steps: int | None, issues: PlanIssues) -> ScheduleConfig:
    """Return the schedule over a number of steps, or over the wall time if that is None."""
    steps = given_steps or schedules.TIME_PARTS
    given, variant = section.schedule, section.optimizer.variant
    table = schedules.defaults(variant)
    kind = given.kind or table.kind
    warmdown_frac = table.warmdown_frac if given.warmdown_frac is None else given.warmdown_frac
    schedule = ScheduleConfig(
        steps=steps,
        kind=kind,
        warmup_steps=table.warmup_steps if given.warmup_steps is None else given.warmup_steps,
        warmdown_steps=0 if kind == "constant" else round(warmdown_frac * steps),
        final_frac=table.final_frac if given.final_frac is None else given.final_frac,
    )
    problems, warmup, warmdown = schedule.problems(), schedule.warmup_steps, schedule.warmdown_steps
    if given_steps is not None and not problems and warmup + warmdown > steps:
        together = f"warm-up ({warmup}) and warm-down ({warmdown}) together"
        problems = [f"{together} are longer than the horizon of {several(steps, 'step')}"]
    for problem in problems:
        fields = [name for name in ("warmup_steps", "warmdown_frac") if getattr(given, name) is not None]
        path: KeyPath = ("pretrain", "schedule", fields[0]) if fields else ("pretrain", "horizon")
        default = "" if given.warmup_steps is not None else f"; the default of `{variant}` is {table.warmup_steps}"
        fits = f"a warm-up of at most {several(steps - warmdown, 'step')} fits{default}"
        advice = f"{fits} (`schedule.warmup_steps`), or train longer"
        issues.refuse(path, "schedule-too-long", problem, advice=advice)
    return schedule
