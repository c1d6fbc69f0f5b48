"""What the end of a stage's process means: the error it stands for, in words that say what to do."""

from __future__ import annotations

import signal

from nanochat.errors import (
    BUG,
    OK,
    OUT_OF_MEMORY,
    InterruptedRun,
    NanochatError,
    PreflightError,
    RecipeError,
    StageError,
)
from nanochat.plan.quantities import show_bytes
from nanochat.runner.process.child import Ended
from nanochat.storage.layout import StageFolder

_SHORTAGES = {
    signal.SIGKILL: "out of memory, or killed from outside",
    signal.SIGABRT: "out of memory, or a crash",
    signal.SIGBUS: "out of memory, or a crash",
    signal.SIGSEGV: "out of memory, or a crash",  # arithmetic libraries do not check what malloc refused
}
"""Signals that a lack of memory may end a process with, and what they may mean besides."""


class StageBugError(NanochatError):
    """A stage ended with a traceback: our fault."""

    exit_code = BUG


def raise_for(ended: Ended, folder: StageFolder, *, planned_bytes: int | None, remedy: str) -> None:
    """Raise the error a child's end stands for; return where it ended well.

    `remedy` names the recipe field to change when memory ran out. A child that was asked to stop and died of a
    signal was killed by the second one: interrupted, with an empty message, for it had no time to say what is saved.
    """
    if ended.exit_code == OK:
        return
    said = _last_words(folder)
    if ended.exit_code == InterruptedRun.exit_code or (ended.interrupted and ended.exit_code < 0):
        raise InterruptedRun(said)
    for error in (RecipeError, PreflightError, StageError):
        if ended.exit_code == error.exit_code:
            raise error(said or f"{folder.stage} failed; its log is {folder.log}")
    if ended.exit_code == OUT_OF_MEMORY:
        raise StageError(
            "\n".join([said or f"{folder.stage} ran out of memory", *_shortage(ended, folder, planned_bytes, remedy)])
        )
    if ended.exit_code < 0:
        raise StageError(_death(ended, folder, planned_bytes, remedy))
    reason = f": {said.strip().splitlines()[-1]}" if said.strip() else ""
    where = folder.error if said.strip() else folder.log
    raise StageBugError(f"{folder.stage} ended with status {ended.exit_code}{reason}\nthe traceback is in {where}")


def _last_words(folder: StageFolder) -> str:
    try:
        return folder.error.read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return ""


def _death(ended: Ended, folder: StageFolder, planned_bytes: int | None, remedy: str) -> str:
    number = -ended.exit_code
    if number not in _SHORTAGES:
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        return f"{folder.stage}'s process died of {name}; its log is {folder.log}"
    cause = signal.Signals(number)
    first = f"{folder.stage}'s process died of {cause.name}: {_SHORTAGES[cause]}"
    return "\n".join([first, *_shortage(ended, folder, planned_bytes, remedy)])


def _shortage(ended: Ended, folder: StageFolder, planned_bytes: int | None, remedy: str) -> tuple[str, ...]:
    """Return the lines that a lack of memory ends with: what was planned and used, and what to change."""
    return (
        f"  memory planned {show_bytes(planned_bytes)}, measured peak {show_bytes(ended.peak_memory_bytes)}",
        f"  {remedy}",
        f"  what was saved is kept: the same command continues; the log is {folder.log}",
    )
