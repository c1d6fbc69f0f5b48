"""Decides what follows the end of a stage's process: an error with advice, or another attempt with half the batch."""

from __future__ import annotations

import signal

from nanochat import errors
from nanochat.errors import ExpectationError, InterruptedRun, NanochatError, PreflightError, RecipeError, StageError
from nanochat.inference.batch_sizes import GENERATED_ROWS
from nanochat.plan.plan import StagePlan
from nanochat.plan.quantities import show_bytes
from nanochat.plan.specs.job import Job
from nanochat.plan.stages import STAGES
from nanochat.runner.process.child import ChildExit
from nanochat.runner.store.last_batch import has_automatic_batch
from nanochat.runner.store.stage_cache import newest_step
from nanochat.storage.layout import StageFolder

_MEMORY_SIGNALS = {
    signal.SIGKILL: "out of memory, or killed by somebody else",
    signal.SIGABRT: "out of memory, or a crash",
    signal.SIGBUS: "out of memory, or a crash",
    signal.SIGSEGV: "out of memory, or a crash",  # arithmetic libraries do not check whether malloc succeeded
}
"""Signals that may end a process when memory runs out, and what else they may mean."""
_EVALUATION_HALVINGS = GENERATED_ROWS.bit_length() - 1
"""An evaluation can be halved this often: then it generates one row at a time."""


class StageBugError(NanochatError):
    """A stage ended with a traceback, which is a bug in nanochat."""

    exit_code = errors.BUG


def raise_for_exit(child_exit: ChildExit, stage: StagePlan, folder: StageFolder) -> None:
    """Raise the error that a child's exit status stands for. Return if the stage finished.

    A child that was asked to stop and then died of a signal was killed by the user's second request. The message of
    that InterruptedRun is empty, since the child had no time to report what it saved.
    """
    code = child_exit.exit_code
    if code == errors.OK:
        return
    message = folder.error.read_text(encoding="utf-8", errors="replace").strip() if folder.error.is_file() else ""
    planned, measured = show_bytes(stage.estimate.peak_memory_bytes), show_bytes(child_exit.peak_memory_bytes)
    memory = (
        f"  planned memory {planned}, measured peak {measured}",
        f"  {_memory_advice(stage, child_exit)}",
        f"  what was saved is kept, and the same command continues from it; the log is {folder.log}",
    )
    if code == InterruptedRun.exit_code or (child_exit.was_asked_to_stop and code < 0):
        raise InterruptedRun(message)
    for error in (RecipeError, PreflightError, StageError, ExpectationError):
        if code == error.exit_code:
            raise error(message or f"{folder.stage} failed; its log is {folder.log}")
    if code == errors.OUT_OF_MEMORY:
        raise StageError("\n".join([message or f"{folder.stage} ran out of memory", *memory]))
    if -code in _MEMORY_SIGNALS:
        cause = signal.Signals(-code)
        reason = "out of memory" if child_exit.ran_out_of_memory else _MEMORY_SIGNALS[cause]
        died = f"the process of {folder.stage} died of {cause.name}: {reason}"
        raise StageError("\n".join([died, *memory]))
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        raise StageError(f"the process of {folder.stage} died of {name}; its log is {folder.log}")
    reason = f": {message.splitlines()[-1]}" if message else ""
    where = folder.error if message else folder.log
    raise StageBugError(f"{folder.stage} ended with exit status {code}{reason}\nthe traceback is in {where}")


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


def _memory_advice(stage: StagePlan, child_exit: ChildExit) -> str:
    """Return the remedies for a stage that ran out of memory, or may have."""
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
