"""Starts the processes that train a stage together: `python -m nanochat.runner.process.launcher JOB.json`.

The runner starts this module like the process of any other stage. It runs `mlx.launch`, which starts the training
processes on this machine or on other hosts and forwards their output. This module adds what `mlx.launch` lacks:
- It collects exit codes. Each process leaves its own in the stage's folder.
- It forwards a request to stop, through a file in that folder.
- It ends the other processes when one dies. They would wait for it forever.
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

from nanochat.errors import BUG, OK, OUT_OF_MEMORY, StageError
from nanochat.plan.specs.job import Job
from nanochat.runner.process.hosts import backend_of, launch_options
from nanochat.runner.process.memory_evidence import MemoryEvidence
from nanochat.stages.process.exit import run_guarded
from nanochat.stages.process.stop_flag import StopFlag
from nanochat.storage.layout import StageFolder
from nanochat.terminal.output import protected_output

GRACE_SECONDS = 10.0
"""How long the other processes may run after one has ended. Normally all of them end together."""
_POLL_SECONDS = 0.2


def main(arguments: list[str]) -> int:
    """Run the stage that the job file describes in several processes and return one exit code for all of them."""
    (path,) = arguments
    job = Job.model_validate_json(Path(path).read_bytes())
    folder = StageFolder(Path(job.stage_dir))
    shutil.rmtree(folder.exit_codes, ignore_errors=True)
    folder.exit_codes.mkdir()
    folder.stop.unlink(missing_ok=True)
    should_stop = StopFlag()
    should_stop.install()
    codes: list[int] = []

    def run() -> None:
        # mpirun is the only child of mlx.launch, and it ends the other processes itself.
        watched = 0 if backend_of(job.execution) == "mpi" else job.execution.processes
        monitor = _ProcessMonitor(folder, watched, should_stop, input_pipe=_replace_stdin())
        monitor.start()
        _launch(job, path)
        sys.stdout.flush()  # the output of the processes, which may say why one died
        codes.append(_joint_exit_code(job, folder, monitor))

    with protected_output("utf-8"):
        code = run_guarded(job, run)
    return codes[0] if code == OK else code


def _launch(job: Job, path: str) -> None:
    """Run `mlx.launch` in this thread until all processes have ended."""
    backend = backend_of(job.execution)
    # mlx.launch calls JACCL over a ring `jaccl-ring`; `mx.distributed.init` knows it as `jaccl`.
    command = [sys.executable, "-m", "nanochat.stages", path, "--join", backend.removesuffix("-ring")]
    (launcher, *_) = importlib.metadata.entry_points(group="console_scripts", name="mlx.launch")
    launch: Callable[[], None] = launcher.load()
    sys.argv = ["mlx.launch", *launch_options(job.execution), "--", *command]
    try:
        launch()
    except SystemExit as error:
        raise StageError(f"mlx.launch did not start ({error}); the log says why") from error


def _replace_stdin() -> int:
    """Replace standard input by a pipe and return the end to write to.

    mlx.launch forwards its standard input to the training processes. It would use a full core if its input were closed,
    or if a process could always take more. The training processes close their input, which mlx.launch only notices
    when there is something to forward.
    """
    reader, writer = os.pipe()
    os.dup2(reader, sys.stdin.fileno())
    os.set_blocking(writer, False)
    return writer


class _ProcessMonitor(threading.Thread):
    """Watches the training processes, forwards a request to stop, and ends those that are left when one dies."""

    def __init__(self, folder: StageFolder, size: int, should_stop: StopFlag, *, input_pipe: int) -> None:
        super().__init__(daemon=True)
        self._folder, self._size, self._should_stop, self._input_pipe = folder, size, should_stop, input_pipe
        self._watched: dict[int, psutil.Process] = {}
        self._first_end: float | None = None
        self._evidence = MemoryEvidence(folder.log)
        self.n_killed = 0

    @property
    def ran_out_of_memory(self) -> bool:
        """Whether a process on this host that ended without an error message had run out of memory."""
        return self._evidence.kernel_killed() or self._evidence.log_says_so()

    def run(self) -> None:
        while True:
            if self._should_stop():
                self._folder.stop.touch()
            with contextlib.suppress(BlockingIOError):
                os.write(self._input_pipe, b"\n")
            self._end_survivors()
            time.sleep(_POLL_SECONDS)

    def _end_survivors(self) -> None:
        """Kill the remaining processes once another has been gone for longer than the grace period."""
        for child in psutil.Process().children():
            if len(self._watched) < self._size:  # what mlx.launch starts after them are helpers
                self._watched.setdefault(child.pid, child)
        alive = [process for process in self._watched.values() if _is_alive(process)]
        if self._first_end is None:
            self._evidence.watch()
        if len(alive) == len(self._watched):
            return  # none has ended, or all have been handled
        self._first_end = self._first_end or time.monotonic()
        if time.monotonic() - self._first_end > GRACE_SECONDS:
            for process in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
                    self.n_killed += 1
            self._watched.clear()
            self._size = 0  # watch no more


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _joint_exit_code(job: Job, folder: StageFolder, monitor: _ProcessMonitor) -> int:
    """Return one exit code for all processes: the first one that states a reason, else BUG, else OK."""
    exit_files = sorted(folder.exit_codes.glob("[!.]*"), key=lambda path: path.stat().st_mtime_ns)
    codes = [int(path.read_text(encoding="utf-8")) for path in exit_files]
    reasons = [code for code in codes if code not in (OK, BUG)]
    if reasons:
        return reasons[0]
    size = job.execution.processes
    if len(codes) == size:
        return BUG if BUG in codes else OK
    # A process whose peer died ends with a connection error of its own, which would hide the cause.
    folder.error.unlink(missing_ok=True)
    if monitor.ran_out_of_memory:
        return OUT_OF_MEMORY
    raise StageError(
        f"{max(1, size - len(codes) - monitor.n_killed)} of the {size} processes that train {job.spec.stage} together "
        "died without an error message: out of memory, killed by somebody else, or their host is gone\n"
        f"  what was saved is kept, and the same command continues from it; the log is {folder.log}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
