"""How the rows of a step are shared out to the processes that train together: in equal parts, or not at all."""

from __future__ import annotations

from collections.abc import Sequence

from nanochat.model.config import GPTConfig
from nanochat.plan.derive.issues import PlanIssues
from nanochat.plan.plan import StagePlan
from nanochat.plan.specs import PretrainSpec, SftSpec, StageSpec
from nanochat.recipe.schema.execution_sections import Distributed


def check_distributed(
    given: Distributed, specs: Sequence[StageSpec], config: GPTConfig | None, issues: PlanIssues
) -> None:
    """Refuse a number of processes that a step's rows cannot be dealt to equally, and a backend that needs hosts."""
    if given.backend == "jaccl" and given.hostfile is None:
        issues.refuse(
            ("run", "distributed", "backend"),
            "missing-field",
            "`jaccl` needs the RDMA devices of each host, which only a hostfile says",
            advice="give `run.distributed.hostfile`, as `mlx.distributed_config` writes it",
        )
    for spec in specs:
        problem = uneven_shares(spec, config, given.processes)
        if problem is not None:
            message, advice = problem
            issues.refuse(("run", "distributed", "processes"), "uneven-shares", message, advice=advice)


def is_shared(stage: StagePlan) -> bool:
    """Return whether several processes run a stage together."""
    return isinstance(stage.spec, PretrainSpec | SftSpec) and stage.execution.processes > 1


def uneven_shares(spec: StageSpec, config: GPTConfig | None, processes: int) -> tuple[str, str] | None:
    """Return what is wrong and what to do where a step's rows cannot be dealt to `processes` equally.

    None where they can, where the stage does not train, and where the length of a row is not known.
    """
    if not isinstance(spec, PretrainSpec | SftSpec):
        return None
    own_len = spec.sequence_len if isinstance(spec, SftSpec) else None
    sequence_len = own_len or (config.sequence_len if config is not None else None)
    if sequence_len is None:
        return None
    rows = max(1, spec.tokens_per_step // sequence_len)
    if rows % processes == 0:
        return None
    fitting = [str(number) for number in range(1, min(rows, 1024) + 1) if rows % number == 0]
    message = f"{spec.stage}'s step of {rows:,} rows cannot be shared equally by {processes:,} processes"
    return message, f"so many fit: {', '.join(fitting)}; or change `tokens_per_step`"
