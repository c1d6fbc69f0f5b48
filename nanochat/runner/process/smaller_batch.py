"""What follows when a stage runs out of memory: another attempt with half of its batch, or advice for the user."""

from __future__ import annotations

from nanochat.inference.batch_sizes import GENERATED_ROWS
from nanochat.plan.plan import StagePlan
from nanochat.plan.specs.job import Job
from nanochat.plan.stages import STAGES
from nanochat.runner.process.child import ChildExit
from nanochat.runner.store.last_batch import has_automatic_batch
from nanochat.runner.store.stage_cache import newest_step
from nanochat.storage.layout import StageFolder

_EVALUATION_HALVINGS = GENERATED_ROWS.bit_length() - 1
"""An evaluation can be halved this often: then it generates one row at a time."""


def halve_batch(job: Job, stage: StagePlan, child_exit: ChildExit) -> Job | None:
    """Return the job with half of its batch if the child ran out of memory and its batch can be halved, else None."""
    if not child_exit.ran_out_of_memory or child_exit.was_asked_to_stop or not has_automatic_batch(stage):
        return None
    halvings = job.execution.batch_halvings + 1
    if STAGES[stage.name].trains:
        if (child_exit.micro_batch_size or 1) == 1:  # None: it had not come so far as to choose
            return None
    elif halvings > _EVALUATION_HALVINGS:
        return None
    return job.model_copy(update={"execution": job.execution.model_copy(update={"batch_halvings": halvings})})


def describe_halving(stage: StagePlan, child_exit: ChildExit, folder: StageFolder) -> str:
    """Return a line that says that memory ran out, and how the stage continues."""
    if not STAGES[stage.name].trains:
        return "ran out of memory; it continues after the last finished suite with half of the batch size"
    step = newest_step(folder)
    where = "starts again" if step is None else f"continues after step {step:,}"
    rows = f"{child_exit.micro_batch_size} rows per forward pass"  # one row cannot be halved
    return f"ran out of memory with {rows}; it {where} with at most half as many"


def memory_advice(stage: StagePlan, child_exit: ChildExit) -> str:
    """Return what the user can do about a stage that ran out of memory, or may have."""
    kind = STAGES[stage.name]
    if not kind.has_model:
        return "set `tokenizer.max_chars` lower: the tokenizer holds that much text in memory"
    if not kind.trains:
        return "use a smaller model or a shorter `model.sequence_len`, or close other programs"
    checkpointing = stage.execution.activation_checkpointing
    recompute = "" if checkpointing else "set `run.activation_checkpointing: true`, or "
    rows = child_exit.micro_batch_size or stage.execution.micro_batch_size
    if rows == 1:
        return (
            f"not even one row per forward pass fits: {recompute}use a smaller model or a shorter `model.sequence_len`"
        )
    is_fixed = stage.execution.micro_batch_size is not None
    now = f"now {rows}" if is_fixed else f"now auto, which chose {rows}" if rows else "now auto"
    fewer = f"{rows // 2}" if rows else "a small number"
    return f"{recompute}set `run.micro_batch_size: {fewer}` ({now})"
