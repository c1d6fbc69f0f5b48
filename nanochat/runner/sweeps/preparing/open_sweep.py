"""Opens a sweep: finds the folder of the same cells, or makes a new one, and writes which runs belong to it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from nanochat.recipe.schema.sweep_section import Sweep
from nanochat.recipe.show import resolved_yaml
from nanochat.runner.store.run_state import RunTracking
from nanochat.runner.store.session import plan_digest
from nanochat.runner.store.sweep_state import CellEntry, SweepState, read_sweep
from nanochat.runner.sweeps.preparing.prepare_sweep import PreparedCell, PreparedSweep
from nanochat.storage.files import exclusive, write_bytes, write_text
from nanochat.storage.layout import SweepFolder, create_sweep_folder, sweep_folders, sweeps_folder


def open_sweep(sweep: PreparedSweep, *, base: Path, tracking: RunTracking) -> tuple[SweepFolder, SweepState]:
    """Return the folder and state of a sweep: those of the latest one of this name if it has the same cells, else new.

    Several processes that each run one cell get the same folder.
    """
    cells = tuple(map(cell_entry, sweep.cells))
    digest = _digest(sweep.section, cells)
    with exclusive(sweeps_folder(base) / sweep.name):
        latest = next(reversed(sweep_folders(base, sweep.name)), None)
        previous = read_sweep(latest) if latest is not None else None
        now = time.time()
        if latest is None or previous is None or previous.digest != digest:
            latest, previous = create_sweep_folder(base, sweep.name, datetime.fromtimestamp(now)), None
        state = SweepState(
            name=sweep.name,
            description=sweep.loaded.recipe.description,
            recipe=str(sweep.loaded.path),
            overrides=sweep.loaded.overrides,
            command=sweep.loaded.command(),
            created=now if previous is None else previous.created,
            section=sweep.section,
            digest=digest,
            tracking=tracking,
            cells=cells if sweep.section.search is None else previous.cells if previous is not None else (),
            pruned=previous.pruned if previous is not None else (),
        )
        write_bytes(latest.recipe, sweep.loaded.path.read_bytes())
        write_text(latest.resolved, resolved_yaml(sweep.loaded))
        state.write(latest.state)  # last: the folder counts as a sweep from here on
    return latest, state


def cell_entry(x: PreparedCell) -> CellEntry:
    """Return the stored entry of a cell."""
    return CellEntry(
        number=x.cell.number,
        values=json.loads(json.dumps(dict(x.cell.values))),
        seed=x.cell.seed,
        run=x.cell.name,
        plan_digest=plan_digest(x.prepared.plan, x.prepared.init_models),
        overrides=x.cell.loaded.overrides,
    )


def _digest(section: Sweep, cells: Sequence[CellEntry]) -> str:
    search = section.search.model_dump(mode="json") if section.search is not None else None
    content = [section.until, search, [[cell.run, cell.plan_digest] for cell in cells]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
