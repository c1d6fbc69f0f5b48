"""Turn the exit status of a stage's process into an error that says what happened and what to do."""

from __future__ import annotations

import signal

from nanochat import errors
from nanochat.errors import ExpectationError, InterruptedRun, NanochatError, PreflightError, RecipeError, StageError
from nanochat.plan.quantities import show_bytes
from nanochat.runner.process.child import ChildExit
from nanochat.storage.layout import StageFolder

_MEMORY_SIGNALS = {
    signal.SIGKILL: "out of memory, or killed by somebody else",
    signal.SIGABRT: "out of memory, or a crash",
    signal.SIGBUS: "out of memory, or a crash",
    signal.SIGSEGV: "out of memory, or a crash",  # arithmetic libraries do not check whether malloc succeeded
}
"""Signals that may end a process when memory runs out, and what else they may mean."""


class StageBugError(NanochatError):
    """A stage ended with a traceback, which is a bug in nanochat."""

    exit_code = errors.BUG


def raise_for_exit(child_exit: ChildExit, folder: StageFolder, *, planned_bytes: int | None, remedy: str) -> None:
    """Raise the error that a child's exit status stands for. Return if the stage finished.

    `remedy` names the recipe field to change if memory ran out. A child that was asked to stop and then died of a
    signal was killed by the user's second request. The message of that InterruptedRun is empty, since the child had no
    time to report what it saved.
    """
    code = child_exit.exit_code
    if code == errors.OK:
        return
    message = folder.error.read_text(encoding="utf-8", errors="replace").strip() if folder.error.is_file() else ""
    memory = (
        f"  planned memory {show_bytes(planned_bytes)}, measured peak {show_bytes(child_exit.peak_memory_bytes)}",
        f"  {remedy}",
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
