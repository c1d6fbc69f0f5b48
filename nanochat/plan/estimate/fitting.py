"""Whether a training stage fits in memory, and the rows per forward pass with which it would."""

from __future__ import annotations

from nanochat.model.config import GPTConfig
from nanochat.plan.estimate.device_rates import DeviceClass
from nanochat.plan.estimate.estimate import dtype_of
from nanochat.plan.estimate.memory import largest_micro_batch
from nanochat.plan.plan import Plan, StagePlan
from nanochat.plan.specs import PretrainSpec, SftSpec
from nanochat.plan.stages import estimate_stage


def model_of(stage: StagePlan, plan: Plan) -> GPTConfig | None:
    """Return the model that a stage trains, where the recipe itself says it."""
    if isinstance(stage.spec, PretrainSpec):
        return stage.spec.model
    trained = (one.spec.model for one in plan.stages if isinstance(one.spec, PretrainSpec))
    return next(trained, None) if stage.init_from is None else None


def peak_bytes(stage: StagePlan, config: GPTConfig | None, device: DeviceClass) -> int | None:
    """Return the planned peak of a stage, for the model `config` where the recipe does not say it; None if unknown."""
    known = stage.estimate.peak_memory_bytes
    return known if known is not None else estimate_stage(stage.spec, stage.execution, config, device).peak_memory_bytes


def rows_that_fit(stage: StagePlan, config: GPTConfig | None, limit_bytes: int, device: DeviceClass) -> int:
    """Return the largest `micro_batch_size` of a training stage that the plan puts under the limit; 0 for none."""
    spec, execution = stage.spec, stage.execution
    if config is None or not isinstance(spec, PretrainSpec | SftSpec):
        return 0
    own_len = spec.sequence_len if isinstance(spec, SftSpec) else None
    return largest_micro_batch(
        config,
        limit_bytes,
        tokens_per_step=spec.tokens_per_step // execution.processes,
        sequence_len=own_len or config.sequence_len,
        dtype=dtype_of(execution, device),
        activation_checkpointing=execution.activation_checkpointing,
    )
