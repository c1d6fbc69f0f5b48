"""The specification of the sft stage, which takes its batch and optimizer from pretraining by default."""

from __future__ import annotations

from dataclasses import replace

from nanochat.model.config import GPTConfig
from nanochat.optim import schedules
from nanochat.optim.groups import OptimizerConfig
from nanochat.plan.derive import scaling
from nanochat.plan.derive.derivation import Derivation
from nanochat.plan.derive.issues import PlanIssues
from nanochat.plan.specs.inputs import SftItem
from nanochat.plan.specs.training import SftSpec
from nanochat.recipe.merge.tree import KeyPath
from nanochat.recipe.schema import recipe as schema


def derive_sft(section: schema.Sft, given: Derivation) -> SftSpec:
    """Return the specification of the sft stage. A horizon given as `ratio` or `flops` becomes one in tokens."""
    config, pretrain, issues = given.config, given.pretrain, given.issues
    optimizer = pretrain.optimizer if pretrain else OptimizerConfig()
    lr_factor, constant_frac, _ = schedules.sft_defaults(optimizer.variant)
    factor = lr_factor if section.lr_scale is None else section.lr_scale
    steps, tokens, epochs = _sft_horizon(section.horizon, config, issues)
    if section.hand_on == "best":
        if not any(item.validation for item in section.data.values()):
            message = "the best model is the one with the lowest validation loss, and no chats are held out"
            advice = "hold out some, for example `validation: {hash_frac: 0.02}` in a task of `sft.data`"
            issues.refuse(("sft", "hand_on"), "missing-validation", message, advice=advice)
        given.check_best("sft", steps)
    return SftSpec(
        data=tuple(
            SftItem(
                name=name,
                source=given.sources[item.source],
                **item.model_dump(exclude={"source", "validation"}),
                validation_split=item.validation.split if item.validation else None,
                validation_frac=item.validation.hash_frac if item.validation else None,
            )
            for name, item in sorted(section.data.items())
        ),
        steps=steps,
        tokens=tokens,
        epochs=epochs,
        minutes=section.horizon.minutes,
        sequence_len=_sft_sequence_len(section, given),
        tokens_per_step=_sft_tokens_per_step(section, given),
        optimizer=replace(optimizer, lr_scale=optimizer.lr_scale * factor),
        constant_frac=constant_frac if section.schedule.constant_frac is None else section.schedule.constant_frac,
        final_frac=section.schedule.final_frac,
        buffer_conversations=section.buffer_conversations,
        hand_on=section.hand_on,
        init_from=section.init_from,
        seed=given.recipe.seed,
    )


def _sft_horizon(
    horizon: schema.Horizon, config: GPTConfig | None, issues: PlanIssues
) -> tuple[int | None, int | None, float | None]:
    if horizon.ratio is None and horizon.flops is None:
        return horizon.steps, horizon.tokens, horizon.epochs
    name = "ratio" if horizon.ratio is not None else "flops"
    if config is None:
        message = f"`{name}` needs the model's size, and this recipe has no `model` section"
        advice = "give the horizon as `steps`, `tokens` or `epochs`"
        issues.refuse(("sft", "horizon", name), "unknown-size", message, advice=advice)
        return 1, None, None
    return None, round(scaling.horizon_tokens(config, ratio=horizon.ratio, flops=horizon.flops)), None


def _sft_sequence_len(section: schema.Sft, given: Derivation) -> int | None:
    """Return the length of rows, None for the context of the weights that the recipe does not describe."""
    rows = section.sequence_len or (given.config.sequence_len if given.config else None)
    start = given.start_model("sft")
    if rows is not None and start is not None and rows > start.sequence_len:
        given.issues.refuse(
            ("sft", "init_from" if section.sequence_len is None else "sequence_len"),
            "sequence-too-long",
            f"rows of {rows:,} tokens are longer than the model's context of {start.sequence_len:,}",
            advice=f"at most {start.sequence_len}{' (`model.sequence_len`)' if start == given.config else ''}",
        )
    return rows


def _sft_tokens_per_step(section: schema.Sft, given: Derivation) -> int:
    pretrain, issues, start = given.pretrain, given.issues, given.start_model("sft")
    batch = section.tokens_per_step or (pretrain.tokens_per_step if pretrain else None)
    if batch is None:
        message = "`sft.tokens_per_step` is not given, and there is no `pretrain` section to take it from"
        advice = "add `tokens_per_step`, a multiple of the row length"
        issues.refuse(("sft",), "missing-field", message, advice=advice)
        return 1
    model = given.config or start
    rows = section.sequence_len or (model.sequence_len if model else None)
    if rows is not None and (section.tokens_per_step or section.sequence_len):
        path: KeyPath = ("sft", "tokens_per_step" if section.tokens_per_step else "sequence_len")
        issues.check_whole_rows(path, batch, rows)
    return batch
