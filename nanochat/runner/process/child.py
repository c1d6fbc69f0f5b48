"""Runs a stage in a child process: starts it, forwards signals to it, and follows its progress.

Running out of memory inside MLX kills the whole process, so a stage never runs in the parent. The child has its own
session, so Ctrl-C in the terminal reaches only the parent. The parent forwards the first signal as a request to save
and stop, and kills the child on the second. Not here: what an exit status means (`exit_status`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from nanochat.errors import OUT_OF_MEMORY
from nanochat.runner.process.interrupts import Interrupts
from nanochat.runner.process.memory_evidence import MemoryEvidence
from nanochat.stages.process.context import NOTE_PREFIX
from nanochat.storage.layout import StageFolder

COMMAND: tuple[str, ...] = (sys.executable, "-m", "nanochat.stages")
LAUNCHER: tuple[str, ...] = (sys.executable, "-m", "nanochat.runner.process.launcher")
"""The command for a stage that several processes train together."""
_POLL_SECONDS = 0.05
_TICK_SECONDS = 0.25
_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024


class Heartbeat(BaseModel):
    """The child's heartbeat, `progress.json`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    fraction: float = 0.0
    text: str = ""
    time: float | None = None
    """Time of the heartbeat in seconds since the epoch, None before the first."""
    peak_memory_bytes: int | None = None
    """Peak memory of its arrays on a GPU. None on a CPU, where the peak of the whole process is used instead."""
    micro_batch_size: int | None = None
    """Rows per forward pass, once a stage that trains has chosen them."""


@dataclass(frozen=True)
class ChildExit:
    """How a child process ended. `exit_code` is the negative signal number if a signal killed it."""

    exit_code: int
    peak_memory_bytes: int | None
    was_asked_to_stop: bool
    ran_out_of_memory: bool = False
    """Whether it said so, or left other evidence. A child that a signal ended for an unknown reason did not."""
    micro_batch_size: int | None = None


def run_child(
    folder: StageFolder,
    *,
    interrupts: Interrupts,
    on_start: Callable[[int], None],
    on_tick: Callable[[Heartbeat], None],
    on_note: Callable[[str], None],
    lock_descriptor: int,
    environment: Mapping[str, str],
    command: Sequence[str] = COMMAND,
) -> ChildExit:
    """Run the job of a stage folder with `command`, which inherits the open lock file, and wait for it to end.

    Args:
        on_start: called with the process id.
        on_tick: called a few times a second with the child's progress.
        on_note: called with each line that the child wants to show to the user.
        environment: variables besides those of this process.
    """
    folder.progress.unlink(missing_ok=True)
    folder.error.unlink(missing_ok=True)
    evidence = MemoryEvidence(folder.log)
    notes = _Notes(folder.log, folder.log.stat().st_size if folder.log.exists() else 0)
    process = _start([*command, str(folder.job)], folder.log, lock_descriptor, {**os.environ, **environment})
    on_start(process.pid)

    def tick() -> Heartbeat:
        evidence.watch()
        for note in notes.read():
            on_note(note)
        return read_heartbeat(folder.progress)

    peak = _follow(process, interrupts, lambda: on_tick(tick()))
    assert process.returncode is not None, "_follow waits for the child"
    last = tick()
    return ChildExit(
        process.returncode,
        last.peak_memory_bytes or peak or None,
        was_asked_to_stop=interrupts.count > 0,
        ran_out_of_memory=_ran_out_of_memory(process.returncode, evidence),
        micro_batch_size=last.micro_batch_size,
    )


def _start(
    command: Sequence[str], log_file: Path, lock_descriptor: int, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start the child in a session of its own. It appends its output to the log and inherits the open lock file."""
    with log_file.open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
            pass_fds=(lock_descriptor,),
        )


def _ran_out_of_memory(exit_code: int, evidence: MemoryEvidence) -> bool:
    if exit_code == OUT_OF_MEMORY:
        return True
    if exit_code == -signal.SIGKILL:
        return evidence.kernel_killed()
    return exit_code < 0 and evidence.log_says_so()


class _Notes:
    """Reads the lines marked as notes that a child appends to its log."""

    def __init__(self, log: Path, offset: int) -> None:
        self._log, self._offset = log, offset

    def read(self) -> list[str]:
        """Return the notes added since the last call. An incomplete line is left for the next call."""
        with self._log.open("rb") as file:
            file.seek(self._offset)
            added = file.read()
        end = added.rfind(b"\n") + 1
        self._offset += end
        lines = added[:end].decode("utf-8", errors="replace").splitlines()
        return [line.removeprefix(NOTE_PREFIX) for line in lines if line.startswith(NOTE_PREFIX)]


def _follow(process: subprocess.Popen[bytes], interrupts: Interrupts, tick: Callable[[], None]) -> int:
    """Wait for the child while forwarding signals. Return its peak resident memory in bytes, 0 if unknown."""
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
    # On Linux ru_maxrss starts at the size of the parent, so it is only used if no sample could be taken.
    return peak or usage


def _poll(process: subprocess.Popen[bytes]) -> int | None:
    """Return None while the child runs, and its peak resident memory in bytes once it has ended."""
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
    """Return the peak resident memory of the largest process among `pid` and its descendants, 0 if unknown."""
    try:
        descendants = psutil.Process(pid).children(recursive=True)
    except psutil.Error:  # it has ended
        return 0
    return max(map(_own_peak, (pid, *(process.pid for process in descendants))))


def _own_peak(pid: int) -> int:
    # psutil reports the present size only. Linux also keeps the peak, which sampling would miss.
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def read_heartbeat(path: Path) -> Heartbeat:
    """Return the child's heartbeat, an empty one before the first."""
    try:
        return Heartbeat.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return Heartbeat()
