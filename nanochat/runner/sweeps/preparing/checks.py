"""Check everything that the cells of a sweep need, before the first of them starts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from nanochat.plan.quantities import show_bytes
from nanochat.plan.sweeps import total_cost
from nanochat.runner.preflight.run_checks import DISK_MARGIN, find_problems, refuse
from nanochat.runner.store.run_state import RunTracking
from nanochat.runner.sweeps.preparing.prepared import PreparedSweep


def check_sweep_run(sweep: PreparedSweep, base: Path, tracking: RunTracking) -> None:
    """Check what the stages need that will run. The message of the PreflightError lists every problem of any cell."""
    to_run = sweep.stages_to_run()
    problems = list(sweep.problems)
    for x in sweep.cells:
        own = [shared.stage.name for shared in to_run if shared.cells[0] == x.cell.number]
        stages = [stage for stage in x.prepared.plan.stages if stage.name in own]
        if stages:
            problems += find_problems(x.prepared, stages, tracking=tracking)
    refuse([*problems, *_check_disk(sweep, base)])


def _check_disk(sweep: PreparedSweep, base: Path) -> Iterator[str]:
    """Yield that the results of all cells together do not fit on the disk."""
    needed = (total_cost(sweep.stages_to_run()).kept_disk_bytes or 0) * DISK_MARGIN
    free = shutil.disk_usage(base).free if base.is_dir() else None
    if free is not None and needed > free:
        yield (
            f"disk: the sweep needs {show_bytes(needed)} under {base}, but only {show_bytes(free)} are free; "
            f"delete unused results with `nanochat-run gc`, or set NANOCHAT_BASE_DIR to a folder on another disk"
        )
