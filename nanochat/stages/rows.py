"""How many rows of tokens this process takes in a step, and how many at a time."""

from __future__ import annotations

from nanochat.errors import StageError
from nanochat.model.config import GPTConfig
from nanochat.model.device import memory_bytes
from nanochat.plan.estimate.memory import largest_micro_batch
from nanochat.stages.context import StageContext

CPU_MICRO_BATCH_TOKENS = 16_384
"""`micro_batch_size: auto` on a CPU: more tokens at once are no faster there and leave the caches."""
MEMORY_SHARE = 0.8
"""Of a device's memory, what `auto` plans to use; the allocator's slack needs the rest."""


def choose_micro_batch(context: StageContext, config: GPTConfig, *, sequence_len: int, rows: int) -> int:
    """Return the rows per forward pass: what the recipe says, or the largest divisor of `rows` that fits.

    Raises:
        StageError: not even one row fits in memory.
    """
    execution, runtime = context.job.execution, context.runtime
    if execution.micro_batch_size is not None:
        return min(execution.micro_batch_size, rows)
    # GPUs have memory of their own; processes on one CPU or one Mac share the machine's.
    sharing = 1 if runtime.backend == "cuda" else execution.processes_here
    limit = execution.memory_limit_bytes or int(MEMORY_SHARE * memory_bytes() / sharing)
    chosen = largest_micro_batch(
        config,
        limit,
        tokens_per_step=rows * sequence_len,
        sequence_len=sequence_len,
        dtype=runtime.dtype,
        activation_checkpointing=execution.activation_checkpointing,
        at_most=max(1, CPU_MICRO_BATCH_TOKENS // sequence_len) if runtime.backend == "cpu" else None,
    )
    if chosen == 0:
        raise StageError(
            f"{context.job.spec.stage}: not even one row of {sequence_len:,} tokens fits in {limit / 2**30:.1f} GiB: "
            "choose a smaller model or `sequence_len`, or set `run.activation_checkpointing: true`"
        )
    return chosen


def rows_of_step(tokens_per_step: int, sequence_len: int, *, world_size: int) -> int:
    """Return this process's rows of a step.

    Raises:
        StageError: a step is not a whole number of rows for each process.
    """
    rows, rest = divmod(tokens_per_step, sequence_len * world_size)
    if rest or rows == 0:
        of = f" on {world_size} processes" if world_size > 1 else ""
        raise StageError(
            f"`tokens_per_step` {tokens_per_step:,} is not a multiple of {sequence_len * world_size:,} "
            f"(rows of {sequence_len:,} tokens{of})"
        )
    return rows
