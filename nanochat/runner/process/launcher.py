"""The process that leads those which train a stage together: `python -m nanochat.runner.process.launcher JOB.json`.

To the runner it looks like the stage's own process. MLX's launcher runs in it, starts the others here or on other
hosts, and passes on what they print. Around it stands what the launcher lacks: it forgets exit codes (each process
leaves its own in the stage's folder), a stop reaches everybody through a file there, and where one process dies the
others, which would wait for it for ever, are ended.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from nanochat.errors import BUG, OK, StageError
from nanochat.plan.specs import Job
from nanochat.runner.process.hosts import backend_of, launch_options
from nanochat.stages.process.exit import run_guarded
from nanochat.stages.process.group import ENDINGS, STOP
from nanochat.stages.process.signals import StopFlag

GRACE_SECONDS = 10.0
"""How long the others may live once a process has ended: all end together where nothing is wrong."""
_POLL_SECONDS = 0.2


def main(arguments: list[str]) -> int:
    """Run the stage that the job file describes on several processes and return the exit code of them all."""
    (path,) = arguments
    job = Job.model_validate_json(Path(path).read_bytes())
    folder = Path(job.stage_dir)
    shutil.rmtree(folder / ENDINGS, ignore_errors=True)
    (folder / ENDINGS).mkdir()
    (folder / STOP).unlink(missing_ok=True)
    should_stop = StopFlag()
    should_stop.install()
    codes: list[int] = []

    def run() -> None:
        # mpirun ends the others itself, and is the launcher's only child.
        watched = 0 if backend_of(job.execution) == "mpi" else job.execution.processes
        overseer = _Overseer(folder, watched, should_stop, keyboard=_own_keyboard())
        overseer.start()
        _launch(job, path)
        codes.append(_verdict(job, folder, ended_here=overseer.ended))

    code = run_guarded(job, run)
    return codes[0] if code == OK else code


def _launch(job: Job, path: str) -> None:
    """Run `mlx.launch` in this thread until all processes have ended."""
    backend = backend_of(job.execution)
    # For JACCL over a ring the launcher has a name of its own.
    command = [sys.executable, "-m", "nanochat.stages", path, "--join", backend.removesuffix("-ring")]
    (launcher, *_) = importlib.metadata.entry_points(group="console_scripts", name="mlx.launch")
    launch: Callable[[], None] = launcher.load()
    sys.argv = ["mlx.launch", *launch_options(job.execution), "--", *command]
    try:
        launch()
    except SystemExit as error:
        raise StageError(f"mlx.launch did not start ({error}); the log says why") from error


def _own_keyboard() -> int:
    """Put a pipe in the place of standard input and return the end to write to.

    The launcher passes on what is typed. It never rests while its input is at an end, nor while a process's input takes
    more; the processes close theirs, which it notices when there is something to pass on.
    """
    reader, writer = os.pipe()
    os.dup2(reader, sys.stdin.fileno())
    os.set_blocking(writer, False)
    return writer


class _Overseer(threading.Thread):
    """Watches the launcher's processes."""

    def __init__(self, folder: Path, size: int, should_stop: StopFlag, *, keyboard: int) -> None:
        super().__init__(daemon=True)
        self._folder, self._size, self._should_stop, self._keyboard = folder, size, should_stop, keyboard
        self._seen: dict[int, psutil.Process] = {}
        self._first_end: float | None = None
        self.ended = 0
        """Processes that were left and have been ended here."""

    def run(self) -> None:
        while True:
            if self._should_stop():
                (self._folder / STOP).touch()
            with contextlib.suppress(BlockingIOError):
                os.write(self._keyboard, b"\n")
            self._look()
            time.sleep(_POLL_SECONDS)

    def _look(self) -> None:
        """End those who are left when another has been gone for too long."""
        for child in psutil.Process().children():
            if len(self._seen) < self._size:  # what the launcher starts later are helpers
                self._seen.setdefault(child.pid, child)
        left = [process for process in self._seen.values() if _is_alive(process)]
        if len(left) == len(self._seen):
            return  # all there, or none left to look after
        self._first_end = self._first_end or time.monotonic()
        if time.monotonic() - self._first_end > GRACE_SECONDS:
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
                    self.ended += 1
            self._seen.clear()
            self._size = 0  # watch no more


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _verdict(job: Job, folder: Path, *, ended_here: int) -> int:
    """Return the exit code that the processes' ends come to.

    Raises:
        StageError: one died without a word, and that is the cause.
    """
    endings = sorted((folder / ENDINGS).glob("[!.]*"), key=lambda path: path.stat().st_mtime_ns)
    codes = [int(path.read_text(encoding="utf-8")) for path in endings]
    meant = [code for code in codes if code not in (OK, BUG)]
    if meant:
        return meant[0]
    size = job.execution.processes
    if len(codes) == size:
        return BUG if BUG in codes else OK
    # A process that lost its peer ends with an error of its own, which says nothing.
    (folder / "error.txt").unlink(missing_ok=True)
    raise StageError(
        f"{max(1, size - len(codes) - ended_here)} of the {size} processes that train {job.spec.stage} together died "
        "without a word: out of memory, killed from outside, or their host is gone\n"
        f"  what was saved is kept: the same command continues; the log is {folder / 'log.txt'}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
