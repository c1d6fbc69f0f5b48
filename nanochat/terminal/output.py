"""Standard output and error that never end the program and never control the terminal.

Text is lost, and the program continues, if the reader goes away (`| head`), the disk under a log file is full, or the
terminal is closed. Characters that the encoding does not have are written as escapes. So are control characters, with
which a model, a data set or the name of a file could change the terminal.

Everything that the product prints goes through `protected_output`. Not here: progress bars and colours (`cli.console`).
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import select
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_READER_LEFT = (errno.EPIPE, errno.ECONNRESET)
_TERMINAL_CLOSED = (errno.EIO, errno.ENXIO)
_ATOMIC_BYTES = 512
"""If a pipe is ready for writing, it accepts this many bytes without blocking, on every system (POSIX PIPE_BUF)."""
_MAX_PENDING_BYTES = 1 << 20
# All control characters but newline and tab, and those that change the direction of the text around them.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Return the text with its control characters as visible escapes such as `\\x1b`; newlines and tabs stay."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


class Output(io.TextIOWrapper):
    """A text stream for the standard output or error. Writing to it raises no OSError."""

    def __init__(self, stream: TextIO, encoding: str) -> None:
        self.sink = _Sink(stream)
        super().__init__(self.sink, encoding=encoding, errors="backslashreplace", newline="\n", line_buffering=True)
        self.unescaped = io.TextIOWrapper(self.sink, encoding=encoding, errors="backslashreplace", newline="\n")
        """Writes control characters as they are, to the same place. Only for what draws on the terminal itself."""
        self.may_be_lost = False
        """Whether the command succeeds although this text cannot be written; see `allow_loss`."""

    def write(self, text: str) -> int:
        """Write text with its control characters escaped and return its length."""
        super().write(printable(text))
        return len(text)

    @property
    def has_reader(self) -> bool:
        """Whether the pipe or the terminal is still open for reading."""
        return self.sink.has_reader

    @property
    def problem(self) -> OSError | None:
        """Why some text could not be written, such as a full disk; None if a reader went away or all is well."""
        return self.sink.problem


@contextmanager
def protected_output(encoding: str | None = None) -> Iterator[None]:
    """Replace the standard streams by streams that survive, and open those that are closed, during the block.

    `encoding` is that of the output; by default the one that Python chose. Input that is not valid in its encoding is
    read as surrogates.
    """
    _open_closed_descriptors()
    saved = sys.stdin, sys.stdout, sys.stderr
    sys.stdin = sys.stdin or os.fdopen(0, "r", encoding="utf-8", closefd=False)
    if isinstance(sys.stdin, io.TextIOWrapper):
        is_ascii = sys.stdin.encoding.lower() in ("ascii", "us-ascii", "ansi_x3.4-1968")
        sys.stdin.reconfigure(encoding="utf-8" if is_ascii else None, errors="surrogateescape")
    sys.stdout = _protect(sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False), encoding)
    sys.stderr = _protect(sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False), encoding)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            if isinstance(stream, Output):
                stream.sink.drain(waits=True)
        sys.stdin, sys.stdout, sys.stderr = saved


def allow_loss() -> None:
    """Let the command succeed even if what it prints cannot be written, because its results are on disk.

    Before it ends, it also does not wait for a reader that does not read, such as a terminal after Ctrl-S.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, Output):
            stream.may_be_lost = True
            stream.sink.waits = False


def is_read() -> bool:
    """Return whether the standard output is still read. If not, commands that only print stop early."""
    return not isinstance(sys.stdout, Output) or sys.stdout.has_reader


def _protect(stream: TextIO, encoding: str | None) -> TextIO:
    """Return a protected stream, or the same stream if it only collects text."""
    return Output(stream, encoding or stream.encoding) if hasattr(stream, "buffer") else stream


def _open_closed_descriptors() -> None:
    """Open the null device in place of closed standard streams, so that the next opened file does not become one."""
    for number, mode in enumerate((os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, mode)
            assert opened == number, "the lowest number that is free is used"
            os.set_inheritable(opened, True)


class _Sink(io.RawIOBase):
    """The file that a standard stream writes to. It accepts all bytes, and remembers why it could not write some."""

    name = "<output>"

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._descriptor: int | None = None
        with contextlib.suppress(io.UnsupportedOperation):
            self._descriptor = stream.fileno()
        self._is_terminal = stream.isatty()  # asked now, because a terminal that was closed does not count as one
        self._pending = bytearray()
        self._lock = threading.RLock()  # the handler of a signal may write while this thread does
        self.has_reader = True
        self.problem: OSError | None = None
        self.waits = True
        """Whether to wait for a reader that does not read, such as a terminal after Ctrl-S. See `drain`."""

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._is_terminal

    def fileno(self) -> int:
        return self._stream.fileno()

    def close(self) -> None:
        """Do nothing: two text streams write here, and either may be deleted first."""

    def write(self, data: bytes) -> int:  # type: ignore[override]
        with self._lock:
            if self.has_reader and len(self._pending) < _MAX_PENDING_BYTES:
                self._pending += data
            self.drain(waits=self.waits)
        return len(data)

    def drain(self, *, waits: bool) -> None:
        """Write the pending bytes. Without waiting, keep those that the reader does not take."""
        with self._lock:
            while self._pending:
                if not waits and not self._is_ready(0):
                    return
                part = bytes(self._pending if waits else self._pending[:_ATOMIC_BYTES])
                try:
                    written = self._write_some(part)
                except BlockingIOError:  # another process made the descriptor non-blocking
                    written = 0
                    self._is_ready(None if waits else 0)
                except OSError as error:
                    self._lose(error)
                    return
                del self._pending[:written]

    def _lose(self, error: OSError) -> None:
        self._pending.clear()
        is_closed = self._is_terminal and error.errno in _TERMINAL_CLOSED
        if error.errno in _READER_LEFT or is_closed:
            self.has_reader = False
        else:
            self.problem = error

    def _is_ready(self, seconds: float | None) -> bool:
        """Wait until something can be written, at most for some seconds; return whether it can."""
        return self._descriptor is None or bool(select.select([], [self._descriptor], [], seconds)[1])

    def _write_some(self, data: bytes) -> int:
        if self._descriptor is not None:
            return os.write(self._descriptor, data)
        with contextlib.suppress(ValueError):  # it has been closed
            self._stream.buffer.write(data)
        return len(data)
