"""Turns errors and signals into messages and exit codes, in the same way for `nanochat-run` and `nanochat-chat`.

This is the only place that catches every exception. The codes themselves belong to the classes in `nanochat.errors`.
It imports little, because Ctrl-C is handled only once this module is loaded.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from nanochat.errors import BUG, OK, InterruptedRun, NanochatError, PreflightError, StageError
from nanochat.terminal.output import Output, protected_output
from nanochat.terminal.signals import STOP_SIGNALS, handle_signals


class Terminated(BaseException):
    """SIGTERM or SIGHUP asked the command to stop. Unlike Ctrl-C it also ends a chat."""


def run_command(command: Callable[[], None], *, is_last: bool = False) -> int:
    """Call `command`, print what went wrong to the standard error, and return the exit code.

    With `is_last`, nothing but the end of the process follows: a signal to stop then ends it at once and silently.
    """
    signals = _StopSignals()
    with protected_output():
        try:
            signals.final_code = _check_output(_call(command, signals))
        finally:
            if not is_last:
                signals.restore()
    return signals.final_code


def _call(command: Callable[[], None], signals: _StopSignals) -> int:
    try:
        with signals:
            command()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):  # as of `--help`
            return end.code or OK
        _print_error(f"error: {end.code}")
        return BUG
    except NanochatError as error:
        has_prefix = isinstance(error, InterruptedRun) or str(error).startswith("error[")
        _print_error(str(error) if has_prefix else f"error: {error}")
        return error.exit_code
    except (KeyboardInterrupt, Terminated):
        return _report_stop()
    except Exception as error:  # noqa: BLE001 -- the outermost frame: a bug becomes a report
        if _follows_from_signal(error):
            return _report_stop()
        if isinstance(error, OSError) and (known := _explain(error)) is not None:
            _print_error(f"error: {known}")
            return known.exit_code
        _report_bug(error)
        return BUG
    return OK


def _explain(error: OSError) -> NanochatError | None:
    """Return the error to report for one of the file system that is not a bug. None for all others."""
    from nanochat.storage.file_errors import explain_file_error

    if error.errno == errno.ENOENT and not _has_working_folder():
        return PreflightError("the working directory no longer exists; change to another one")
    return explain_file_error(error)


def _has_working_folder() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return False
    return True


class _StopSignals:
    """Handles the signals to stop. In the block they raise KeyboardInterrupt or `Terminated` in the main thread.

    Outside of it nothing is left that could be cleaned up, and they end the process.
    """

    def __init__(self) -> None:
        self.final_code = InterruptedRun.exit_code
        self._is_raising = False
        self._unraisable = sys.unraisablehook
        is_main = threading.current_thread() is threading.main_thread()
        self._previous = handle_signals(STOP_SIGNALS, self._stop) if is_main else {}
        sys.unraisablehook = self._end_if_dropped

    def restore(self) -> None:
        """Give the signals back to their previous handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        sys.unraisablehook = self._unraisable

    def __enter__(self) -> None:
        self._is_raising = True

    def __exit__(self, *_: object) -> None:
        self._is_raising = False

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        if not self._is_raising:
            os._exit(self.final_code)
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    def _end_if_dropped(self, dropped: sys.UnraisableHookArgs) -> None:
        """End the process where Python drops the exception of a signal, as in the callbacks of an import."""
        if issubclass(dropped.exc_type, KeyboardInterrupt | Terminated):
            os._exit(_report_stop())
        self._unraisable(dropped)


def _report_stop() -> int:
    _print_error("stopped")
    return InterruptedRun.exit_code


def _follows_from_signal(error: BaseException | None) -> bool:
    """Return whether a library turned the exception of a signal into another one."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt | Terminated):
            return True
        error = error.__cause__ or error.__context__
    return False


def _check_output(code: int) -> int:
    """Return the exit code: that of a failure if the result was to be printed and could not be written."""
    output = sys.stdout
    if not isinstance(output, Output):
        return code
    output.flush()
    if output.problem is None:
        return code
    _print_error(f"the standard output could not be written completely: {output.problem}")
    return StageError.exit_code if code == OK and not output.may_be_lost else code


def _report_bug(error: Exception) -> None:
    import tempfile  # here, because Ctrl-C cannot be handled while this module is imported
    import traceback

    said = f"error: this is a bug in nanochat: {type(error).__name__}: {error}\n"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="nanochat-traceback-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            traceback.print_exception(error, file=file)
    except OSError as problem:
        where = f"The traceback could not be stored ({problem}):\n{''.join(traceback.format_exception(error))}"
    else:
        where = f"The traceback is in {file.name}."
    _print_error(f"{said}{where} Please report it, with the recipe if there is one.")


def _print_error(message: str) -> None:
    print(message, file=sys.stderr)
