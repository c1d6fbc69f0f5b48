"""How the process of a stage ends: every error becomes an exit code and a message in `error.txt`.

The parent process reads both (`runner.process.exit_status`). Not here: what the stage does before that.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from nanochat.errors import BUG, OK, OUT_OF_MEMORY, NanochatError
from nanochat.plan.specs.job import Job
from nanochat.storage.file_errors import explain_file_error
from nanochat.storage.files import write_text
from nanochat.storage.layout import StageFolder

_OUT_OF_MEMORY_TEXTS = (
    "out of memory",
    "unable to allocate",
    "outofmemory",
    "insufficient memory",
    "memory allocation",
    "bad_alloc",
)


def run_guarded(job: Job, run: Callable[[], None]) -> int:
    """Call `run` and return the exit code of the process. An error is written to `error.txt` and the log."""
    folder = StageFolder(Path(job.stage_dir))
    stage = job.spec.stage
    try:
        run()
    except NanochatError as error:
        return _report(folder, str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001 -- the outermost frame of a process must report every error
        if _is_out_of_memory(error):
            return _report(folder, f"{stage} ran out of memory ({str(error) or type(error).__name__})", OUT_OF_MEMORY)
        if isinstance(error, OSError) and (known := explain_file_error(error)) is not None:
            return _report(folder, f"{stage}: {known}", known.exit_code)
        return _report(folder, traceback.format_exc(), BUG)
    return OK


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that memory ran out; an MLX RuntimeError is recognised by its text."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and reports_out_of_memory(str(error)))


def reports_out_of_memory(text: str) -> bool:
    """Return whether a message, or the end of a log, says that memory ran out."""
    return any(part in text.lower() for part in _OUT_OF_MEMORY_TEXTS)


def _report(folder: StageFolder, message: str, code: int) -> int:
    sys.stderr.write(message + "\n")
    if not folder.error.exists():  # another process of this stage may have failed first, and that error is the cause
        with contextlib.suppress(OSError):  # the disk may be full; the log has the message as well
            write_text(folder.error, message + "\n")
    return code
