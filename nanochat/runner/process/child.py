"""A stage in a process of its own: start it, pass signals on, follow its progress.

An out-of-memory abort inside MLX kills the process it happens in, so a stage never runs in the parent. The child has
its own session: a Ctrl-C at the terminal reaches the parent alone, which asks the child once to save and stop, and
kills it when asked a second time. Not here: what its end means (`endings`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from nanochat.runner.process.interrupts import Interrupts
from nanochat.stages.context import NOTE_PREFIX
from nanochat.storage.layout import StageFolder

COMMAND: tuple[str, ...] = (sys.executable, "-m", "nanochat.stages")
LEADER: tuple[str, ...] = (sys.executable, "-m", "nanochat.runner.process.launcher")
"""For a stage that several processes train."""
_POLL_SECONDS = 0.05
_TICK_SECONDS = 0.25
_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024


class Progress(BaseModel):
    """The child's heartbeat, `progress.json`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    fraction: float = 0.0
    text: str = ""
    time: float | None = None
    """When the child last gave a sign of life, seconds since the epoch; None before the first."""
    peak_memory_bytes: int | None = None
    """The largest size of its arrays on a GPU; None where the process's own size says it."""


@dataclass(frozen=True)
class Ended:
    """How a child ended. `exit_code` is negative for a signal; `interrupted` means that it was asked to stop."""

    exit_code: int
    seconds: float
    peak_memory_bytes: int | None
    interrupted: bool


def run_child(
    folder: StageFolder,
    *,
    interrupts: Interrupts,
    on_start: Callable[[int], None],
    on_tick: Callable[[Progress], None],
    on_note: Callable[[str], None],
    lock_descriptor: int,
    command: Sequence[str] = COMMAND,
) -> Ended:
    """Run the job of a stage folder to its end.

    `on_tick` is called a few times a second with its progress, `on_note` with what it wants to be shown.
    """
    folder.progress.unlink(missing_ok=True)
    folder.error.unlink(missing_ok=True)
    began = time.monotonic()
    with folder.log.open("ab") as log:
        notes = _Notes(folder.log, log.tell())
        process = subprocess.Popen(
            [*command, str(folder.job)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(lock_descriptor,),
        )
    on_start(process.pid)

    def tick() -> None:
        for note in notes.read():
            on_note(note)
        on_tick(read_progress(folder.progress))

    peak = _follow(process, interrupts, tick)
    assert process.returncode is not None, "the child was not waited for"
    for note in notes.read():
        on_note(note)
    on_device = read_progress(folder.progress).peak_memory_bytes
    return Ended(process.returncode, time.monotonic() - began, on_device or peak or None, interrupts.count > 0)


class _Notes:
    """Reads the notes that a child adds to its log."""

    def __init__(self, log: Path, offset: int) -> None:
        self._log, self._offset = log, offset

    def read(self) -> list[str]:
        """Return the notes added since the last call; a line that is not whole yet is left for the next."""
        with self._log.open("rb") as file:
            file.seek(self._offset)
            fresh = file.read()
        end = fresh.rfind(b"\n") + 1
        self._offset += end
        lines = fresh[:end].decode("utf-8", errors="replace").splitlines()
        return [line.removeprefix(NOTE_PREFIX) for line in lines if line.startswith(NOTE_PREFIX)]


def _follow(process: subprocess.Popen[bytes], interrupts: Interrupts, tick: Callable[[], None]) -> int:
    """Wait for the child while forwarding signals; return its peak resident memory in bytes (0 if unknown)."""
    peak, forwarded, next_tick = 0, 0, 0.0
    try:
        while (usage := _poll(process)) is None:
            if interrupts.count > forwarded:
                forwarded = interrupts.count
                _forward(process, forwarded)
            if time.monotonic() >= next_tick:
                next_tick = time.monotonic() + _TICK_SECONDS
                peak = max(peak, _peak_memory(process.pid))
                tick()
            time.sleep(_POLL_SECONDS)
    except BaseException:
        _kill(process)
        raise
    # On Linux ru_maxrss starts at the parent's size; it serves where /proc does not exist or was too slow to be read.
    return peak or usage


def _poll(process: subprocess.Popen[bytes]) -> int | None:
    """Return None while the child runs, afterwards its largest resident size in bytes."""
    pid, status, usage = os.wait4(process.pid, os.WNOHANG)
    if pid == 0:
        return None
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss * _MAXRSS_BYTES


def _forward(process: subprocess.Popen[bytes], count: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        if count == 1:
            os.kill(process.pid, signal.SIGTERM)
        else:
            os.killpg(process.pid, signal.SIGKILL)


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _peak_memory(pid: int) -> int:
    """Return the peak of the largest process among `pid` and its descendants, 0 where the system does not say it."""
    peak = _own_peak(pid)
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            peak = max([peak, *map(_peak_memory, map(int, children.read_text().split()))])
    return peak


def _own_peak(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def read_progress(path: Path) -> Progress:
    """Return the child's heartbeat, an empty one where there is none yet."""
    try:
        return Progress.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return Progress()
