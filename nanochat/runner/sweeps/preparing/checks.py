"""Check everything that the cells of a sweep need, before the first of them starts."""

from __future__ import annotations

from pathlib import Path

from nanochat.plan.sweeps import total_cost
from nanochat.runner.preflight.run_checks import find_lack_of_disk, find_problems, refuse
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
    kept = total_cost(to_run).kept_disk_bytes or 0
    refuse([*problems, *find_lack_of_disk(kept, base, whose="sweep")])
