"""A command typed into a shell on a terminal of its own, as a user does: Ctrl-C, Ctrl-Z, `fg`, a closed window.

Linux only: the exit code of a command whose shell is gone comes to the process that made itself their reaper.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import pty
import re
import shlex
import signal
import subprocess
import termios
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from process import Attempt, Bench

CTRL_C, CTRL_Z = b"\x03", b"\x1a"
_WAIT_SECONDS = 300
_PR_SET_CHILD_SUBREAPER = 36


@dataclass
class Job:
    """A command that a shell runs. Once the shell is gone, its exit code comes to this process."""

    pid: int

    def poll(self) -> int | None:
        """Return None while the command runs or is suspended, and some number once it has ended."""
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE:
                return None
        return 0

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code of a command whose shell is gone."""
        deadline = time.monotonic() + (timeout or _WAIT_SECONDS)
        while self.poll() is None:
            assert time.monotonic() < deadline, "the command does not end"
            time.sleep(0.05)
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)


@dataclass
class Shell:
    """An interactive shell on a new terminal."""

    process: subprocess.Popen[bytes]
    master: int | None
    """The terminal's other side, None once it is closed."""
    shown: bytearray = field(default_factory=bytearray)

    def type(self, text: bytes) -> None:
        """Press keys."""
        assert self.master is not None
        os.write(self.master, text)

    def read(self, seconds: float = 0.05) -> None:
        """Take in what is shown for a while."""
        assert self.master is not None
        deadline = time.monotonic() + seconds
        os.set_blocking(self.master, False)
        while time.monotonic() < deadline:
            try:
                self.shown += os.read(self.master, 1 << 16)
            except (BlockingIOError, InterruptedError):
                time.sleep(0.02)
            except OSError:  # the other side is closed
                return

    def wait_for(self, pattern: bytes) -> re.Match[bytes]:
        """Wait until something is shown and return it."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while (found := re.search(pattern, self.shown)) is None:
            assert time.monotonic() < deadline, f"{pattern!r} was not shown: {self.shown[-2000:]!r}"
            self.read()
        return found

    def run(self, bench: Bench, *, prefix: str = "", environment: str = "") -> Attempt:
        """Type the command of a bench and return it once it runs."""
        self.type(f"{environment} {prefix} {shlex.join(bench.command)}\n".encode())
        children: list[psutil.Process] = []
        while not children:
            self.read()
            children = psutil.Process(self.process.pid).children()
        return Attempt(Job(children[0].pid), bench)

    def exit_code(self, job: Job) -> int:
        """Wait for the command that was typed last and return its exit code."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while job.poll() is None:
            assert time.monotonic() < deadline, f"the command does not end: {self.shown[-2000:]!r}"
            self.read()
        self.type(b"echo code=$?.\n")
        return int(self.wait_for(rb"code=(\d+)\.")[1])

    def close_window(self) -> None:
        """Close the terminal. The system and the shell both send SIGHUP."""
        self._close_terminal()
        self.process.wait(_WAIT_SECONDS)

    def close(self) -> None:
        """End the shell, if it is still there."""
        if self.master is not None:
            with contextlib.suppress(OSError):
                self.type(b"exit\n")
            self._close_terminal()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.process.kill()

    def _close_terminal(self) -> None:
        assert self.master is not None
        os.close(self.master)
        self.master = None


def open_shell(bench: Bench) -> Shell:
    """Start a shell in the folder of a bench. Processes that outlive it become children of this process."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    master, slave = pty.openpty()

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTSTP):  # ignored, if a script started this in background
            signal.signal(number, signal.SIG_DFL)

    process = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"],
        cwd=bench.folder,
        env={**os.environ, **bench.variables, "TERM": "xterm", "PS1": "$ ", "HISTFILE": ""},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        preexec_fn=take_terminal,
    )
    os.close(slave)
    return Shell(process, master)


def is_suspended(pids: list[int]) -> bool:
    """Return whether all processes are stopped."""
    return all(psutil.Process(pid).status() == psutil.STATUS_STOPPED for pid in pids)


def family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def newest(folder: Path) -> float:
    """Return when the newest file under a folder was written."""
    return max((path.stat().st_mtime for path in folder.rglob("*") if path.is_file()), default=0.0)
