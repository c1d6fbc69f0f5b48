"""How a training step is divided: the rows of this process, and the rows of a forward pass."""

from __future__ import annotations

import mmap

from nanochat.errors import StageError
from nanochat.model.config import GPTConfig
from nanochat.model.device import memory_bytes, recommended_bytes
from nanochat.plan.estimate.device_classes import usable_bytes
from nanochat.plan.estimate.memory.training import cpu_micro_batch_limit, micro_batch_size, training_memory
from nanochat.plurals import several
from nanochat.stages.process.context import StageContext


def choose_micro_batch(context: StageContext, config: GPTConfig, *, sequence_len: int, rows: int) -> int:
    """Return the rows per forward pass, given this process's rows of a step. At least one must fit in memory.

    All processes use the same number, the smallest that one of them chose. It is reported to the parent process. If an
    earlier attempt ran out of memory, it is smaller than usual, and the user is notified.
    """
    execution, runtime = context.job.execution, context.runtime
    # A GPU has memory of its own. Processes on one CPU or one Mac share the machine's.
    sharing = 1 if runtime.backend == "cuda" else execution.processes_here
    usable = usable_bytes(runtime.backend, memory_bytes(), recommended_bytes=recommended_bytes())
    limit = execution.memory_limit_bytes or usable // sharing
    chosen = micro_batch_size(
        config,
        execution,
        rows=rows,
        sequence_len=sequence_len,
        dtype=runtime.dtype,
        limit_bytes=limit,
        at_most=cpu_micro_batch_limit(sequence_len) if runtime.backend == "cpu" else None,
        on_metal=runtime.backend == "metal",
    )
    if chosen == 0:
        raise StageError(
            f"{context.job.spec.stage}: not even one row of {sequence_len:,} tokens fits in {limit / 2**30:.1f} GiB: "
            "choose a smaller model or `sequence_len`, or set `run.activation_checkpointing: true`"
        )
    usual = min(context.process_group.gather(chosen))
    used = _halve(usual, rows, execution.batch_halvings) if execution.micro_batch_size is None else usual
    context.micro_batch_size = used
    context.write_heartbeat()
    if runtime.backend == "cpu":
        memory = training_memory(
            config,
            sequence_len=sequence_len,
            dtype=runtime.dtype,
            activation_checkpointing=execution.activation_checkpointing,
        )
        _require_memory(memory.peak(used, accumulates=used < rows) - memory.weights)
    if used < usual:
        passes = -(-rows // used)
        context.notify_user(
            f"uses {used} of its {several(rows, 'row')} per forward pass instead of {usual}, because memory ran "
            f"out: a step has {several(passes, 'pass', 'passes')} and as many tokens as before (sums in a different "
            "order may change the last digits)"
        )
    return used


def _halve(size: int, rows: int, times: int) -> int:
    """Return `size` reduced `times` times, each time to the largest divisor of `rows` that is at most half of it."""
    for _ in range(times):
        size = next((fewer for fewer in range(size // 2, 1, -1) if rows % fewer == 0), 1)
    return size


def _require_memory(size: int) -> None:
    """Raise a MemoryError if the system refuses `size` more bytes at once.

    A limit on the address space (`ulimit -v`) does so, and a system that does not overcommit. On a CPU, MLX does not
    check what it is given, and the process would crash.
    """
    try:
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError as error:
        raise MemoryError(f"the system refuses {size:,} bytes: {error.strerror}") from error


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
