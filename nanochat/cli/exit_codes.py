"""Turns errors into messages and exit codes, in the same way for `nanochat-run` and `nanochat-chat`.

This is the only place that catches every exception. The codes themselves belong to the classes in `nanochat.errors`.
"""

from __future__ import annotations

import errno
import io
import sys
import tempfile
import traceback
from collections.abc import Callable

from nanochat.errors import BUG, OK, InterruptedRun, NanochatError, PreflightError, StageError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def run_command(command: Callable[[], None]) -> int:
    """Call `command`, print what went wrong to the standard error, and return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files need not be UTF-8
            stream.reconfigure(errors="backslashreplace")
    try:
        command()
    except NanochatError as error:
        has_prefix = isinstance(error, InterruptedRun) or str(error).startswith("error[")
        _print_error(str(error) if has_prefix else f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _print_error("stopped")
        return InterruptedRun.exit_code
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        sys.stderr.close()
    except Exception as error:  # noqa: BLE001 -- the outermost frame: a bug becomes a report
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            _print_error(
                f"error: the disk is full ({error}). Everything saved before is intact. Free some space, for example"
                " with `nanochat-run gc`, then run the same command again."
            )
            return StageError.exit_code
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            _print_error(f"error: {error.filename}: the path is longer than the file system allows; use a shorter one")
            return PreflightError.exit_code
        _report_bug(error)
        return BUG
    return OK


def _report_bug(error: Exception) -> None:
    with tempfile.NamedTemporaryFile(
        "w", prefix="nanochat-traceback-", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
        traceback.print_exception(error, file=file)
    _print_error(
        f"error: this is a bug in nanochat: {type(error).__name__}: {error}\n"
        f"The traceback is in {file.name}. Please report it, with the recipe if there is one."
    )


def _print_error(message: str) -> None:
    print(message, file=sys.stderr)
