"""How a training step is divided: the rows of this process, and the rows of a forward pass."""

from __future__ import annotations

from nanochat.errors import StageError
from nanochat.model.config import GPTConfig
from nanochat.model.device import memory_bytes
from nanochat.plan.estimate.memory import cpu_micro_batch_limit, micro_batch_size
from nanochat.stages.process.context import StageContext

MEMORY_SHARE = 0.8
"""Share of a device's memory that `micro_batch_size: auto` plans to use. The allocator's slack needs the rest."""


def choose_micro_batch(context: StageContext, config: GPTConfig, *, sequence_len: int, rows: int) -> int:
    """Return the rows per forward pass, given this process's rows of a step. At least one must fit in memory."""
    execution, runtime = context.job.execution, context.runtime
    # A GPU has memory of its own. Processes on one CPU or one Mac share the machine's.
    sharing = 1 if runtime.backend == "cuda" else execution.processes_here
    limit = execution.memory_limit_bytes or int(MEMORY_SHARE * memory_bytes() / sharing)
    chosen = micro_batch_size(
        config,
        execution,
        rows=rows,
        sequence_len=sequence_len,
        dtype=runtime.dtype,
        limit_bytes=limit,
        at_most=cpu_micro_batch_limit(sequence_len) if runtime.backend == "cpu" else None,
    )
    if chosen == 0:
        raise StageError(
            f"{context.job.spec.stage}: not even one row of {sequence_len:,} tokens fits in {limit / 2**30:.1f} GiB: "
            "choose a smaller model or `sequence_len`, or set `run.activation_checkpointing: true`"
        )
    return chosen


def rows_of_step(tokens_per_step: int, sequence_len: int, *, world_size: int) -> int:
    """Return how many rows of a step this process has. A step must be a whole number of rows for each process."""
    rows, rest = divmod(tokens_per_step, sequence_len * world_size)
    if rest or rows == 0:
        of = f" on {world_size} processes" if world_size > 1 else ""
        raise StageError(
            f"`tokens_per_step` {tokens_per_step:,} is not a multiple of {sequence_len * world_size:,} "
            f"(rows of {sequence_len:,} tokens{of})"
        )
    return rows
