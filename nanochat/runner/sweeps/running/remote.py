"""Runs the cells of a sweep on other machines: one on a host through `ssh`, or each as a job of Slurm.

The machines must see the base folder, the recipe and this installation under the same paths.
"""

from __future__ import annotations

import contextlib
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from nanochat.errors import InterruptedRun, NanochatError, StageError, worst
from nanochat.plan.compile import device_class_of
from nanochat.runner.display import Display
from nanochat.runner.process.interrupts import Interrupts
from nanochat.runner.sweeps.preparing.prepare_sweep import PreparedSweep

_POLL_SECONDS = 0.2
_STOP_SECONDS = 120
"""How long before its time limit a job is asked to save its state."""


def run_on_host(
    host: str, command: Sequence[str], *, folder: Path, base: Path, display: Display, interrupts: Interrupts
) -> None:
    """Run a command of `nanochat-run` on a host, in the same folder and with the same base folder as here.

    Its output is shown line by line. If it fails, the error that its exit code stands for is raised with its last line.
    """
    line = shlex.join(
        ["env", f"NANOCHAT_BASE_DIR={base.absolute()}", sys.executable, "-m", "nanochat.cli.run", *command]
    )
    # With a terminal, the command on the host is stopped when the connection ends.
    call = ["ssh", "-tt", "-o", "BatchMode=yes", host, f"cd {shlex.quote(str(folder))} && {line}"]
    with subprocess.Popen(
        call,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    ) as process:
        watcher = threading.Thread(target=_stop_when_asked, args=(process, interrupts), daemon=True)
        watcher.start()
        assert process.stdout is not None, "it is a pipe"
        last = ""
        for shown in process.stdout:
            last = shown.strip() or last
            display.log_line(f"{host}: {shown.rstrip()}")
        code = process.wait()
        watcher.join()
    if code != 0:
        raise _error_of(code, interrupts)(f"on {host}: {last or f'exit status {code}'}")


def _stop_when_asked(process: subprocess.Popen[str], interrupts: Interrupts) -> None:
    """End the connection when this command is asked to stop; a second signal kills it."""
    forwarded = 0
    while process.poll() is None:
        if interrupts.count > forwarded:
            forwarded = interrupts.count
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM if forwarded == 1 else signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_SECONDS)


def _error_of(code: int, interrupts: Interrupts) -> type[NanochatError]:
    if interrupts.count:
        return InterruptedRun
    return worst([code]) or StageError


def slurm_script(sweep: PreparedSweep, command: Sequence[str], *, base: Path, folder: Path) -> str:
    """Return a bash script for `sbatch`. Every job runs `command`, to which the number of its cell is added."""
    run, first = sweep.loaded.recipe.run, sweep.cells[0].prepared
    most = f"%{sweep.section.parallel}" if isinstance(sweep.section.parallel, int) else ""
    options = [
        f"--job-name={sweep.name}",
        f"--array=1-{len(sweep.cells)}{most}",
        f"--cpus-per-task={run.threads}",
        f"--output={sweep.name}-%a.log",
        "--open-mode=append",
        f"--signal=B:TERM@{_STOP_SECONDS}",
    ]
    if device_class_of(run.device, first.device_class) == "cuda":
        options.append("--gpus-per-task=1")
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in options),
        "set -eu",
        f"export NANOCHAT_BASE_DIR={shlex.quote(str(base.absolute()))}",
        f"cd {shlex.quote(str(folder))}",
        f'exec {shlex.join(command)} --cell "$SLURM_ARRAY_TASK_ID"',
    ]
    return "\n".join(lines) + "\n"
