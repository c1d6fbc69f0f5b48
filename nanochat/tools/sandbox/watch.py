"""Starts a sandbox's processes, follows them until the verdict or a limit, and ends them."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from nanochat.errors import StageError
from nanochat.tools.sandbox.judge import Verdict
from nanochat.tools.sandbox.plain_data import write_frame
from nanochat.tools.sandbox.settings import MAX_FILES, Settings

_PACKAGES = Path(__file__).parents[3]
"""The folder that holds the package `nanochat`."""
_COMMAND = "import sys; sys.path.append(sys.argv.pop()); from nanochat.tools.sandbox.supervisor import main; main()"
_OPTIONS = ("-s", "-S", "-P", "-X", "utf8")
_START_SECONDS = 30.0
"""Setting up the sandbox may take this long. The program's own time starts after that."""
_STOP_SECONDS = 3.0
_PROCESSES = 2
"""Processes that report when they are ready: the program's and the judge's."""
_POLL_SECONDS = 0.05
"""How often the program's folder is measured."""
_LONGEST_POLL_SECONDS = 1.0
"""No poll counts as longer than this, so that the time while this process is suspended does not count."""
_READ_BYTES = 1 << 16
_MAX_DRAIN_READS = 32
"""Enough to empty a full pipe. The limit stops a process that survived and still prints from blocking the sandbox."""


class Outcome(NamedTuple):
    """How the tests ended."""

    passed: bool
    """Whether they ran to their end."""
    message: str
    """Why they did not, with the line that failed; else empty."""
    report: str
    """The text that the tests assigned to `REPORT`, if they passed."""
    stdout: str
    """What the program printed. If it is long, a line in place of its middle says how much is missing."""
    stderr: str
    """The same for the standard error."""


def follow_sandbox(settings: Settings, *frames: bytes) -> Outcome:
    """Start a sandbox, send it the program and the tests, and return how it ended.

    Raises StageError if it could not be set up.
    """
    with _supervisor(settings) as (process, report):
        watch = _Watch(process, report, settings)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            for frame in frames:
                write_frame(process.stdin.fileno(), frame)
        verdict = watch.follow()
        _stop(process)
        return Outcome(*verdict, *watch.texts())


@contextlib.contextmanager
def _supervisor(settings: Settings) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """Start the supervisor, and yield it and its reports. It is ended when the block ends."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": settings.folder, "TMPDIR": settings.folder}
    environment |= {"LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
    read_end, write_end = os.pipe()
    with contextlib.ExitStack() as cleanup:
        report = cleanup.enter_context(open(read_end, "rb", buffering=0))  # noqa: PTH123
        try:
            process = subprocess.Popen(
                [sys.executable, *_OPTIONS, "-c", _COMMAND, json.dumps(settings), str(write_end), str(_PACKAGES)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                cwd=settings.folder,
                env=environment,
                pass_fds=[write_end],
                umask=0o022,
                start_new_session=True,
            )
        finally:
            os.close(write_end)
        for stream in (process.stdin, process.stdout, process.stderr):
            assert stream is not None
            cleanup.enter_context(stream)
        cleanup.callback(_stop, process)
        yield process, report


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the supervisor, which ends its processes first."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class _Watch:
    """Follows a sandbox: what it reports, what the program prints, and how much time and space that takes."""

    def __init__(self, process: subprocess.Popen[bytes], report: IO[bytes], settings: Settings) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self._settings = settings
        self._report = report
        self._unread = b""
        self._ready = 0
        self._left_seconds = _START_SECONDS
        limit = settings.limits.output_bytes
        self._texts = {process.stdout: _HeadAndTail(limit), process.stderr: _HeadAndTail(limit)}
        for stream in (report, *self._texts):
            os.set_blocking(stream.fileno(), False)

    def follow(self) -> Verdict:
        """Read until the verdict, and return it. A program that exceeds a limit does not pass."""
        is_measured = self._settings.isolation != "namespaces"  # with namespaces, the file system has a limit
        with selectors.DefaultSelector() as selector:
            for stream in (self._report, *self._texts):
                selector.register(stream, selectors.EVENT_READ)
            while self._left_seconds > 0:
                began = time.monotonic()
                for key, _ in selector.select(min(self._left_seconds, _POLL_SECONDS)):
                    if key.fileobj is self._report:
                        if verdict := self._read_reports():
                            return verdict
                    elif not self._read(key.fileobj):  # type: ignore[arg-type]
                        selector.unregister(key.fileobj)
                if is_measured and self._is_folder_full():
                    return Verdict(False, "the program wrote too many files, or too much")
                self._left_seconds -= min(time.monotonic() - began, _LONGEST_POLL_SECONDS)
        if self._ready < _PROCESSES:
            raise self._error(f"not ready after {_START_SECONDS:g} s")
        return Verdict(False, f"took longer than {self._settings.limits.wall_seconds:g} s")

    def texts(self) -> tuple[str, str]:
        """Return standard output and standard error of a sandbox that has ended."""
        for stream in self._texts:
            reads = 0
            while reads < _MAX_DRAIN_READS and self._read(stream):
                reads += 1
        out, err = (text.text() for text in self._texts.values())
        return out, err

    def _read(self, stream: IO[bytes]) -> bool:
        try:
            data = os.read(stream.fileno(), _READ_BYTES)
        except BlockingIOError:
            return False
        self._texts[stream].add(data)
        return bool(data)

    def _read_reports(self) -> Verdict | None:
        """Read the reports of the sandbox, and return the verdict, None if it is still to come.

        The time of the program starts when both processes are ready.
        """
        data = os.read(self._report.fileno(), _READ_BYTES)
        if not data:
            if self._ready < _PROCESSES:
                raise self._error(self.texts()[1].strip() or "its process ended")
            return Verdict(False, "the tests took too much time or memory")
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            match json.loads(line):
                case {"ready": _}:
                    self._ready += 1
                    if self._ready == _PROCESSES:
                        self._left_seconds = self._settings.limits.wall_seconds
                case {"verdict": [bool(passed), str(message), str(report)]}:
                    return Verdict(passed, message, report)
                case {"error": reason}:
                    raise self._error(str(reason))
        return None

    def _error(self, reason: str) -> StageError:
        isolation = self._settings.isolation
        return StageError(f"the sandbox for generated programs with `{isolation}` could not be set up: {reason}")

    def _is_folder_full(self) -> bool:
        """Return whether the program's folder exceeds its limits. Only programs without isolation can make folders."""
        used = 0
        # The program may delete a file while this loop measures it.
        with contextlib.suppress(OSError), os.scandir(self._settings.folder) as entries:
            for count, entry in enumerate(entries):
                used += entry.stat(follow_symlinks=False).st_blocks * 512
                if count >= MAX_FILES or used > self._settings.limits.file_bytes:
                    return True
        return False


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
