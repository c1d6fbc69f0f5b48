"""Converts files that stages cannot read directly, such as csv and json, in a process of its own."""

from __future__ import annotations

import contextlib
import json
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from nanochat.errors import OK, InterruptedRun, NanochatError, PreflightError, StageError
from nanochat.plan.quantities import show_bytes
from nanochat.plurals import several
from nanochat.runner.display import Display
from nanochat.runner.process.interrupts import Interrupts

COMMAND: tuple[str, ...] = (sys.executable, "-m", "nanochat.data.ingest")
_POLL_SECONDS = 0.1


def convert_files(paths: Sequence[Path], base: Path, *, display: Display, interrupts: Interrupts) -> None:
    """Convert files and show the progress.

    Raises:
        PreflightError, StageError: a file cannot be converted; the message names the file.
        InterruptedRun: a signal arrived. The parts that are finished are kept, and the next attempt continues.
    """
    if not paths:
        return
    display.log_line(
        f"converting {several(len(paths), 'file')} ({show_bytes(sum(path.stat().st_size for path in paths))})"
    )
    with tempfile.TemporaryFile("w+b") as log:
        command = [*COMMAND, str(base)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, start_new_session=True) as process:
            try:
                message = _follow(process, paths, display, interrupts)
            except BaseException:
                process.kill()
                raise
            finally:
                display.clear_progress()
        if process.returncode != OK:
            log.seek(0)
            raise _error(process.returncode, message, log.read().decode(errors="replace"))


def _follow(process: subprocess.Popen[bytes], paths: Sequence[Path], display: Display, interrupts: Interrupts) -> str:
    """Show the progress until the process closes its output, and return the message of its error, empty if none."""
    assert process.stdin is not None and process.stdout is not None, "both are pipes"
    with contextlib.suppress(BrokenPipeError):  # it has ended, and its exit status says why
        process.stdin.write(json.dumps([str(path.absolute()) for path in paths]).encode())
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    sizes = [path.stat().st_size for path in paths]
    display.show_progress("convert", 0.0, paths[0].name)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if interrupts.count:
                raise InterruptedRun("stopped while converting files, the finished parts are kept")
            if not selector.select(_POLL_SECONDS):
                continue
            match json.loads(process.stdout.readline() or "null"):
                case [int(number), int(done), int(_)]:
                    fraction = (sum(sizes[:number]) + done) / max(1, sum(sizes))
                    display.show_progress("convert", fraction, paths[number].name)
                case [str(message)]:
                    return message
                case _:
                    return ""


def _error(code: int, message: str, log: str) -> NanochatError:
    if message:
        kind = PreflightError if code == PreflightError.exit_code else StageError
        return kind(message)
    return StageError(f"the process that converts files ended with exit status {code}\n{log}".rstrip())
