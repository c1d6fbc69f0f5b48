"""Runs a generated Python program where it can do little harm, and says whether it ran to its end.

Every program gets a process of its own in a new session with an empty environment, in a temporary folder that goes
with it. Wall and CPU time, memory, file size, open files, threads and output are limited. It may not start processes,
open sockets, send signals, load native code, or write outside its folder: an attempt ends it there. Where Linux allows
(as root, or with unprivileged user namespaces) it also runs in namespaces of its own: no network at all, every file
system read-only but a small in-memory one, no other process in sight, no privileges; whatever it managed to start
ends with it. It has the standard library and no installed packages.

Not covered. The refusals (`sandbox_guard`) live in the same interpreter: native code smuggled in, or a broken
interpreter, gets past them, and where there are no namespaces (macOS, many containers: `Outcome.isolation` says
"hooks") nothing else refuses. Files that the user may read stay readable. Memory is limited for each process; macOS
does not enforce it. A program that digs for the sandbox's bookkeeping inside its own process can claim to have reached
its end. This keeps the mistakes and the mischief of a language model in; it is no wall against a determined attacker.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import IO, Literal

from nanochat.errors import StageError

Isolation = Literal["namespaces", "hooks"]
Reason = Literal["finished", "failed", "refused", "timeout", "output"]

CHILD = Path(__file__).with_name("sandbox_child.py")
REFUSED = 98
"""Exit code of a program that was ended for something it may not do."""
_START_SECONDS = 30.0
"""The sandbox itself stands within it, or there is none; a program's own time begins after that."""
_STOP_SECONDS = 3.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Limits:
    """What a program may use."""

    wall_seconds: float = 5.0
    """From when the sandbox stands, so that a busy machine costs a program little of its time."""
    cpu_seconds: int = 5
    memory_bytes: int = 512 * 2**20
    """Address space of the process."""
    file_bytes: int = 4 * 2**20
    """Size of each file; in namespaces, of all files together too."""
    output_bytes: int = 64 * 2**10
    """Of standard output and standard error, each."""
    open_files: int = 32
    threads: int = 32
    """Processes and threads."""


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    reason: Reason
    """`finished` (reached its end), `failed` (exception, exit or signal), `refused`, `timeout`, `output` (too much)."""
    stdout: str
    stderr: str
    seconds: float
    isolation: Isolation

    @property
    def passed(self) -> bool:
        """Whether the program reached its end, with no exception, exit or thread left running."""
        return self.reason == "finished"


def run_program(source: str, *, limits: Limits | None = None, isolation: Isolation | None = None) -> Outcome:
    """Return how the program `source` ended. Only reaching its last line counts as passed, not an exit code.

    Args:
        isolation: by default namespaces where they work, else hooks.

    Raises:
        StageError: the sandbox itself could not be set up.
    """
    chosen: Isolation = isolation or ("namespaces" if namespaces_work() else "hooks")
    outcome, is_ready = _run(source, limits or Limits(), chosen)
    if not is_ready:
        why = outcome.stderr.strip() or "no reason given"
        raise StageError(f"the sandbox for generated programs could not be set up ({chosen}): {why}")
    return outcome


@cache
def namespaces_work() -> bool:
    """Return whether this machine lets this user make namespaces; tried once per process."""
    if sys.platform != "linux":
        return False
    outcome, _ = _run("", Limits(), "namespaces")
    return outcome.passed


def _run(source: str, limits: Limits, isolation: Isolation, *, is_guarded: bool = True) -> tuple[Outcome, bool]:
    """Return how the program ended, and whether the sandbox got as far as starting it.

    Without the guard only the kernel's walls stand: for tests of those.
    """
    start = time.monotonic()
    nonce = secrets.token_hex(16)
    with (
        tempfile.TemporaryDirectory(prefix="nanochat-sandbox-", ignore_cleanup_errors=True) as folder,
        _pipe() as ready,
        _pipe() as done,
    ):
        order: dict[str, object] = {"source": source, "nonce": nonce, "limits": asdict(limits)}
        order |= {"folder": os.path.realpath(folder), "isolation": isolation, "is_guarded": is_guarded}
        order |= {"ready": ready.write, "done": done.write}
        with _started(folder, keep=(ready.write, done.write)) as process:
            output = _Output(process, limits.output_bytes)
            _send(process, json.dumps(order).encode())
            reason: Reason | None = output.collect(ready.read, wall_seconds=limits.wall_seconds)
            _stop(process)
            output.drain()
        is_ready, is_done = ready.received() == b"ready", done.received() == nonce.encode()
    if reason is None:
        reason = "finished" if is_done else "refused" if process.returncode == REFUSED else "failed"
    return Outcome(reason, *output.texts(), time.monotonic() - start, isolation), is_ready


@contextlib.contextmanager
def _started(folder: str, *, keep: tuple[int, ...]) -> Iterator[subprocess.Popen[bytes]]:
    """Start the child process, which waits for its order on standard input; it is dead afterwards."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8"}
    environment |= {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-s", "-S", "-P", "-X", "utf8", str(CHILD)],
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        cwd=folder,
        env=environment,
        pass_fds=keep,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _stop(process)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def _send(process: subprocess.Popen[bytes], order: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(order)
        process.stdin.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the supervisor, which ends the program first, and whatever is left of the process group."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class _Output:
    """What a process prints, up to a limit."""

    def __init__(self, process: subprocess.Popen[bytes], limit_bytes: int) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        self._limit_bytes = limit_bytes
        self._texts = {process.stdout: bytearray(), process.stderr: bytearray()}

    def collect(self, ready: int, *, wall_seconds: float) -> Literal["timeout", "output"] | None:
        """Read until the process ends; return why it should be ended sooner, or None.

        Its time begins when there is something to read at `ready`.
        """
        deadline = time.monotonic() + _START_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(ready, selectors.EVENT_READ)
            for stream in self._texts:
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, selectors.EVENT_READ)
            while self._process.poll() is None:
                left = deadline - time.monotonic()
                if left <= 0:
                    return "timeout"
                for key, _ in selector.select(min(left, _POLL_SECONDS)):
                    if key.fd == ready:
                        selector.unregister(ready)
                        deadline = time.monotonic() + wall_seconds
                    elif not self._read(key.fileobj):  # type: ignore[arg-type]
                        selector.unregister(key.fileobj)
                if any(len(text) > self._limit_bytes for text in self._texts.values()):
                    return "output"
        return None

    def drain(self) -> None:
        """Read what an ended process has left in its pipes."""
        for stream, text in self._texts.items():
            while len(text) <= self._limit_bytes and self._read(stream):
                pass

    def texts(self) -> tuple[str, str]:
        """Return standard output and standard error, each cut at the limit."""
        out, err = (bytes(text[: self._limit_bytes]).decode(errors="replace") for text in self._texts.values())
        return out, err

    def _read(self, stream: IO[bytes]) -> bool:
        try:
            data = os.read(stream.fileno(), 1 << 16)
        except BlockingIOError:
            return False
        self._texts[stream] += data
        return bool(data)


@dataclass(frozen=True)
class _Pipe:
    """Both ends of a pipe, as file descriptors."""

    read: int
    write: int

    def received(self) -> bytes:
        """Return what has been written so far; never waits."""
        os.set_blocking(self.read, False)
        try:
            return os.read(self.read, 4096)
        except BlockingIOError:
            return b""


@contextlib.contextmanager
def _pipe() -> Iterator[_Pipe]:
    pipe = _Pipe(*os.pipe())
    try:
        yield pipe
    finally:
        os.close(pipe.read)
        os.close(pipe.write)
