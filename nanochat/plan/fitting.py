"""Whether a stage fits: its memory into a limit, and the rows of a training step into equal shares of processes."""

from __future__ import annotations

from collections.abc import Sequence

from nanochat.model.config import GPTConfig
from nanochat.plan.derive.issues import PlanIssues
from nanochat.plan.estimate.device_classes import DeviceClass
from nanochat.plan.estimate.estimate import dtype_of
from nanochat.plan.estimate.memory.training import micro_batch_size
from nanochat.plan.plan import StagePlan
from nanochat.plan.specs.job import StageSpec
from nanochat.plan.specs.training import PretrainSpec, RlSpec, SftSpec
from nanochat.plan.stages import STAGES
from nanochat.plurals import several
from nanochat.recipe.schema.execution_sections import Distributed

_SHOWN_DIVISORS_UP_TO = 1024


def rows_that_fit(stage: StagePlan, limit_bytes: int, device: DeviceClass) -> int:
    """Return the largest `micro_batch_size` with which a training stage stays within a memory limit; 0 if none does."""
    spec, execution, config = stage.spec, stage.execution, stage.model
    if config is None or not isinstance(spec, PretrainSpec | SftSpec):
        return 0
    sequence_len = _sequence_len(spec, config) or config.sequence_len
    return micro_batch_size(
        config,
        execution.model_copy(update={"micro_batch_size": None}),
        rows=max(1, spec.tokens_per_step // execution.processes // sequence_len),
        sequence_len=sequence_len,
        dtype=dtype_of(execution, device),
        limit_bytes=limit_bytes,
        on_metal=device == "metal",
    )


def check_distributed(
    section: Distributed, specs: Sequence[StageSpec], config: GPTConfig | None, issues: PlanIssues
) -> None:
    """Refuse a number of processes that cannot share a step's rows equally, and a backend that needs a hostfile."""
    if section.backend == "jaccl" and section.hostfile is None:
        message = "`jaccl` needs the RDMA devices of each host, which only a hostfile says"
        advice = "give `run.distributed.hostfile`, as `mlx.distributed_config` writes it"
        issues.refuse(("run", "distributed", "backend"), "missing-field", message, advice=advice)
    for spec in specs:
        problem = uneven_shares(spec, config, section.processes)
        if problem is not None:
            message, advice = problem
            issues.refuse(("run", "distributed", "processes"), "uneven-shares", message, advice=advice)


def is_shared(stage: StagePlan) -> bool:
    """Return whether several processes run a stage together."""
    return STAGES[stage.name].trains and stage.execution.processes > 1


def uneven_shares(spec: StageSpec, config: GPTConfig | None, processes: int) -> tuple[str, str] | None:
    """Return the problem and its remedy if `processes` cannot share the rows of a step equally.

    None if they can, if the stage does not train, and if the length of a row is not known.
    """
    if isinstance(spec, RlSpec):
        rows, unit, field = spec.prompts_per_step, "question", "prompts_per_step"
    elif isinstance(spec, PretrainSpec | SftSpec) and (sequence_len := _sequence_len(spec, config)) is not None:
        rows, unit, field = max(1, spec.tokens_per_step // sequence_len), "row", "tokens_per_step"
    else:
        return None
    if rows % processes == 0:
        return None
    fitting = [str(n) for n in range(1, min(rows, _SHOWN_DIVISORS_UP_TO) + 1) if rows % n == 0]
    message = f"{spec.stage}'s step of {several(rows, unit)} cannot be shared equally by {processes:,} processes"
    return message, f"numbers of processes that fit: {', '.join(fitting)}; or change `{field}`"


def _sequence_len(spec: PretrainSpec | SftSpec, config: GPTConfig | None) -> int | None:
    own = spec.sequence_len if isinstance(spec, SftSpec) else None
    return own or (config.sequence_len if config is not None else None)
