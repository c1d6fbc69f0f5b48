"""`sweep.json`: which runs belong to a sweep. What they computed, and how far they are, stands in their own folders.

The file is written whole before the first cell starts, so that a sweep that is killed at any time is found again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from nanochat.recipe.schema.sweep_section import Sweep
from nanochat.recipe.show import resolved_yaml
from nanochat.runner.store.record import RunTracking
from nanochat.runner.store.session import plan_digest
from nanochat.runner.sweeps.prepared import PreparedCell, PreparedSweep
from nanochat.storage.files import exclusive, write_bytes, write_text
from nanochat.storage.layout import SweepFolder, create_sweep_folder, sweep_folders, sweeps_folder


class _Stored(BaseModel):
    """Base class of what is stored as JSON. Unknown keys, written by a later version, are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class CellEntry(_Stored):
    """A cell of a sweep, and the run that computes it."""

    number: int
    values: dict[str, object]
    """The value of each swept field."""
    seed: int
    run: str
    """The name of the run."""
    plan_digest: str
    """That of the run. Runs of the same name that compute something else do not belong to the cell."""
    overrides: tuple[str, ...]
    """The flags that make the cell's recipe out of the sweep's."""


class SweepState(_Stored):
    """A sweep: what was asked for, and its cells."""

    format: int = 1
    name: str
    description: str
    recipe: str
    overrides: tuple[str, ...]
    command: str
    """The command that continues or repeats the sweep."""
    created: float
    section: Sweep
    digest: str
    """The same for two sweeps of the same cells."""
    tracking: RunTracking
    cells: tuple[CellEntry, ...]
    """All of them, or those that a search has chosen so far."""

    def write(self, folder: SweepFolder) -> None:
        """Write this as JSON."""
        write_text(folder.state, self.model_dump_json(indent=1))


def read_sweep(folder: SweepFolder) -> SweepState | None:
    """Return the state of a sweep, or None if it is damaged or missing."""
    try:
        return SweepState.model_validate_json(folder.state.read_bytes())
    except (OSError, ValidationError):
        return None


def open_sweep(sweep: PreparedSweep, *, base: Path, tracking: RunTracking) -> tuple[SweepFolder, SweepState]:
    """Return the folder and state of a sweep: those of the latest one of this name if it has the same cells, else new.

    Several processes that each run one cell get the same folder.
    """
    cells = tuple(map(_entry, sweep.cells))
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
        )
        write_bytes(latest.recipe, sweep.loaded.path.read_bytes())
        write_text(latest.resolved, resolved_yaml(sweep.loaded))
        state.write(latest)  # last: the folder counts as a sweep from here on
    return latest, state


def reference(folder: SweepFolder) -> str:
    """Return NAME/TIME."""
    return f"{folder.path.parent.name}/{folder.path.name}"


def _entry(x: PreparedCell) -> CellEntry:
    return CellEntry(
        number=x.cell.number,
        values=json.loads(json.dumps(dict(x.cell.values))),
        seed=x.cell.seed,
        run=x.cell.name,
        plan_digest=plan_digest(x.prepared.plan, x.prepared.init_digests),
        overrides=x.cell.loaded.overrides,
    )


def _digest(section: Sweep, cells: Sequence[CellEntry]) -> str:
    search = section.search.model_dump(mode="json") if section.search is not None else None
    content = [section.until, search, [[cell.run, cell.plan_digest] for cell in cells]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
