"""The job array script with which Slurm runs the cells of a sweep, one per job."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from nanochat.plan.compile import device_class_of
from nanochat.runner.sweeps.preparing.prepared import PreparedSweep

_STOP_SECONDS = 120
"""How long before its time limit a job is asked to save its state."""


def slurm_script(sweep: PreparedSweep, command: Sequence[str], *, base: Path, folder: Path) -> str:
    """Return a bash script for `sbatch`. Every job runs `command`, to which the number of its cell is added.

    The nodes must see the base folder, the recipe and this installation under the same paths.
    """
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
