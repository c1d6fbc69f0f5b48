"""Runs a generated Python program in a sandbox and reports whether it ran to its end.

Each program runs in its own process, in a new session, with an empty environment and a temporary folder that is deleted
afterwards. Wall time, CPU time, memory, file size, open files and threads are limited. A program that tries to
start a process, open a socket, send a signal, load native code or write outside its folder is ended at once. If Linux
allows it (as root, or with unprivileged user namespaces), the program also runs in its own namespaces: it has no
network, no privileges and sees no other process, every file system is read-only except a small one in memory, and all
processes that it managed to start end with it. It can import the standard library but no installed packages.

Not covered: the refusals of `sandbox_guard` run in the program's own interpreter, so native code and bugs of the
interpreter can bypass them. Without namespaces (macOS, many containers; `Outcome.isolation` is "hooks") they are the
only protection. The program can read every file that the user can read. The memory limit is per process, and macOS does
not enforce it. A program that searches its own process for the sandbox's data can claim to have reached its end. The
sandbox contains a language model's mistakes and mischief, but it does not stop a determined attacker.
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
from nanochat.tools.sandbox_guard import REFUSED

Isolation = Literal["namespaces", "hooks"]
Reason = Literal["finished", "failed", "refused", "timeout"]

CHILD = Path(__file__).with_name("sandbox_child.py")
_START_SECONDS = 30.0
"""Setting up the sandbox may take this long. The program's own time starts after that."""
_STOP_SECONDS = 3.0
_POLL_SECONDS = 0.05
_LONGEST_POLL_SECONDS = 1.0
"""No poll counts for longer, so that a program that was suspended together with this process is not out of time."""
_READ_BYTES = 1 << 16
_MAX_DRAIN_READS = 32
"""More than a pipe can hold. A process that survived, and still prints, must not keep the sandbox waiting."""


@dataclass(frozen=True)
class Limits:
    """How much a program may use."""

    wall_seconds: float = 5.0
    """Counted from when the sandbox is ready, so that a busy machine takes little of the program's time."""
    cpu_seconds: int = 5
    memory_bytes: int = 512 * 2**20
    """Address space of the process."""
    file_bytes: int = 4 * 2**20
    """Limit for each file; in namespaces, also for all files together."""
    output_bytes: int = 64 * 2**10
    """How much is kept of standard output and of standard error: half of it from the start, half from the end."""
    open_files: int = 32
    threads: int = 32
    """Processes and threads."""


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    reason: Reason
    """`finished` (reached its end), `failed` (exception, exit or signal), `refused`, `timeout`."""
    stdout: str
    """Without its middle if it is long; a line there says how much is missing. So is `stderr`."""
    stderr: str
    seconds: float
    isolation: Isolation

    @property
    def passed(self) -> bool:
        """Whether the program reached its end, with no exception, exit or thread left running."""
        return self.reason == "finished"


def run_program(source: str, *, limits: Limits | None = None, isolation: Isolation | None = None) -> Outcome:
    """Run the program `source` and return how it ended. It passes only if it reaches its last line.

    By default it runs in namespaces if they work, else with hooks. A StageError says that the sandbox itself could not
    be set up.
    """
    chosen: Isolation = isolation or ("namespaces" if namespaces_work() else "hooks")
    outcome, is_ready = _run(source, limits or Limits(), chosen)
    if not is_ready:
        why = outcome.stderr.strip() or "no reason given"
        raise StageError(f"the sandbox for generated programs could not be set up ({chosen}): {why}")
    return outcome


@cache
def namespaces_work() -> bool:
    """Return whether this user can create namespaces on this machine. Tried once per process."""
    if sys.platform != "linux":
        return False
    outcome, _ = _run("", Limits(), "namespaces")
    return outcome.passed


def _run(source: str, limits: Limits, isolation: Isolation, *, is_guarded: bool = True) -> tuple[Outcome, bool]:
    """Return how the program ended, and whether the sandbox could be set up.

    Tests of the namespaces pass `is_guarded=False`, so that only the kernel refuses.
    """
    start = time.monotonic()
    nonce = secrets.token_hex(16)
    with (
        tempfile.TemporaryDirectory(prefix="nanochat-sandbox-", ignore_cleanup_errors=True) as folder,
        _pipe() as ready,
        _pipe() as done,
    ):
        request: dict[str, object] = {"source": source, "nonce": nonce, "limits": asdict(limits)}
        request |= {"folder": os.path.realpath(folder), "isolation": isolation, "is_guarded": is_guarded}
        request |= {"ready": ready.write, "done": done.write}
        with _child_process(folder, keep=(ready.write, done.write)) as process:
            output = _Output(process, limits.output_bytes)
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(request).encode())
                process.stdin.close()
            reason: Reason | None = output.collect(ready.read, wall_seconds=limits.wall_seconds)
            _stop(process)
            output.drain()
        is_ready, is_done = ready.received() == b"ready", done.received() == nonce.encode()
    if reason is None:
        reason = "finished" if is_done else "refused" if process.returncode == REFUSED else "failed"
    return Outcome(reason, *output.texts(), time.monotonic() - start, isolation), is_ready


@contextlib.contextmanager
def _child_process(folder: str, *, keep: tuple[int, ...]) -> Iterator[subprocess.Popen[bytes]]:
    """Start the child process, which reads its request from standard input. It is killed when the block ends."""
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


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the supervisor, which ends the program first, and then everything left in the process group."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class _HeadAndTail:
    """The start and the end of a stream of bytes, so that endless output takes little memory."""

    def __init__(self, limit_bytes: int) -> None:
        self._half = limit_bytes // 2
        self._head, self._tail, self._total = bytearray(), bytearray(), 0

    def add(self, data: bytes) -> None:
        """Append bytes to the stream."""
        room = self._half - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        del self._tail[: max(0, len(self._tail) - self._half)]
        self._total += len(data)

    def text(self) -> str:
        """Return both parts as text, with a line between them if bytes are missing."""
        lost = self._total - len(self._head) - len(self._tail)
        note = f"\n[{lost:,} bytes left out]\n".encode() if lost else b""
        return bytes(self._head + note + self._tail).decode(errors="replace")


class _Output:
    """Collects what a process prints."""

    def __init__(self, process: subprocess.Popen[bytes], limit_bytes: int) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        self._texts = {process.stdout: _HeadAndTail(limit_bytes), process.stderr: _HeadAndTail(limit_bytes)}

    def collect(self, ready: int, *, wall_seconds: float) -> Literal["timeout"] | None:
        """Read until the process ends, and return None, or until it exceeds its wall time.

        Its wall time starts when something can be read from the descriptor `ready`.
        """
        left = _START_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(ready, selectors.EVENT_READ)
            for stream in self._texts:
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, selectors.EVENT_READ)
            while self._process.poll() is None:
                if left <= 0:
                    return "timeout"
                began = time.monotonic()
                for key, _ in selector.select(min(left, _POLL_SECONDS)):
                    if key.fd == ready:
                        selector.unregister(ready)
                        left, began = wall_seconds, time.monotonic()
                    elif not self._read(key.fileobj):  # type: ignore[arg-type]
                        selector.unregister(key.fileobj)
                left -= min(time.monotonic() - began, _LONGEST_POLL_SECONDS)
        return None

    def drain(self) -> None:
        """Read what is left in the pipes of a process that has ended."""
        for stream in self._texts:
            reads = 0
            while reads < _MAX_DRAIN_READS and self._read(stream):
                reads += 1

    def texts(self) -> tuple[str, str]:
        """Return standard output and standard error."""
        out, err = (text.text() for text in self._texts.values())
        return out, err

    def _read(self, stream: IO[bytes]) -> bool:
        try:
            data = os.read(stream.fileno(), _READ_BYTES)
        except BlockingIOError:
            return False
        self._texts[stream].add(data)
        return bool(data)


@dataclass(frozen=True)
class _Pipe:
    """Both ends of a pipe, as file descriptors."""

    read: int
    write: int

    def received(self) -> bytes:
        """Return what has been written so far, without waiting."""
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
