"""`sweep.json`: which runs belong to a sweep. Their own folders hold what they computed, and how far they are.

The file is written whole before the first cell starts, so that a sweep that is killed at any time is found again.
"""

from __future__ import annotations

from pathlib import Path

from nanochat.recipe.schema.sweep_section import Sweep
from nanochat.runner.store.record import Stored, Time, read_stored
from nanochat.runner.store.run_state import RunState, RunTracking
from nanochat.storage.layout import SweepFolder, sweeps_folder


class CellEntry(Stored):
    """A cell of a sweep, and the run that computes it."""

    number: int
    values: dict[str, object]
    """The value of each swept field."""
    seed: int
    run: str
    """The name of the run."""
    plan_digest: str
    """The plan digest of the run. A run of the same name with another digest does not belong to the cell."""
    overrides: tuple[str, ...]
    """The flags that make the cell's recipe out of the sweep's."""


class SweepState(Stored):
    """A sweep: what was asked for, and its cells."""

    format: int = 1
    name: str
    description: str
    recipe: str
    overrides: tuple[str, ...]
    command: str
    """The command that continues or repeats the sweep."""
    created: Time
    section: Sweep
    digest: str
    """The same for two sweeps of the same cells."""
    tracking: RunTracking
    cells: tuple[CellEntry, ...]
    """All of them, or those that a search has chosen so far."""
    pruned: tuple[int, ...] = ()
    """The numbers of the cells that a search stopped early, or did not start, because they are worse than others."""
    is_exhausted: bool = False
    """Whether a search found no other setting to try, although it may try more."""

    @property
    def final_cell_count(self) -> int:
        """How many cells the sweep has when it ends, including those that a search has yet to choose."""
        search, seeds = self.section.search, self.section.seeds
        if search is None or self.is_exhausted:
            return len(self.cells)
        return search.trials * (1 if seeds is None else seeds if isinstance(seeds, int) else len(seeds))


def read_sweep(folder: SweepFolder) -> SweepState | None:
    """Return the state of a sweep, or None if it is damaged or missing."""
    return read_stored(folder.state, SweepState)


def is_pruned(run: RunState, base: Path) -> bool:
    """Return whether a search stopped the cell of this run early, and no command has continued it since."""
    found = sweep_of(run.sweep, base) if run.status == "interrupted" else None
    if found is None:
        return False
    pruned = [cell for cell in found[1].cells if cell.number in found[1].pruned]
    return any((cell.run, cell.plan_digest) == (run.name, run.plan_digest) for cell in pruned)


def describe_damaged_sweep(folder: SweepFolder) -> str:
    """Return the problem with the state of a sweep, and its remedy, as text for the user."""
    return f"{folder.state} is damaged; run its recipe again, which takes finished cells from the cache"


def sweep_of(run_sweep: str, base: Path) -> tuple[SweepFolder, SweepState] | None:
    """Return the sweep that a run names in its state, or None if it names none, or that one cannot be read."""
    folder = SweepFolder(sweeps_folder(base) / run_sweep)
    state = read_sweep(folder) if run_sweep else None
    return None if state is None else (folder, state)
