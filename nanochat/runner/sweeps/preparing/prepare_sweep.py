"""Prepares a sweep: compiles every cell and looks it up in the cache before the first one starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nanochat.plan.plan import Plan
from nanochat.plan.sweeps import SharedStage, compile_cells, share_stages, stages_until
from nanochat.recipe.load import LoadedRecipe
from nanochat.recipe.schema.sweep_section import Sweep
from nanochat.recipe.sweeps.cells import Cell, list_cells
from nanochat.runner.preflight.prepare import Prepared, prepare
from nanochat.runner.store.stage_cache import CacheLookup


@dataclass(frozen=True, kw_only=True)
class PreparedCell:
    """A compiled cell, and what the cache holds of its stages. Stages that do not run are left out."""

    cell: Cell
    prepared: Prepared
    lookups: tuple[CacheLookup, ...]


@dataclass(frozen=True, kw_only=True)
class PreparedSweep:
    """A recipe with a sweep, and its cells. The cells of a search are examples: the ends of each field's range."""

    loaded: LoadedRecipe
    section: Sweep
    cells: tuple[PreparedCell, ...]

    @property
    def name(self) -> str:
        """The name of the sweep."""
        return self.loaded.recipe.name

    @property
    def problems(self) -> list[str]:
        """Inputs that are missing, each once."""
        return list(dict.fromkeys(problem for x in self.cells for problem in x.prepared.problems))

    def shared_stages(self) -> list[SharedStage]:
        """Return every stage that the cells need, once."""
        plans = {x.cell.number: x.prepared.plan for x in self.cells}
        return share_stages(plans, self.section.until)

    def stages_to_run(self) -> list[SharedStage]:
        """Return the stages that are not cached."""
        actions: Mapping[tuple[int, str], str] = {
            (x.cell.number, lookup.stage.name): lookup.action for x in self.cells for lookup in x.lookups
        }
        return [shared for shared in self.shared_stages() if actions[shared.cells[0], shared.stage.name] != "cached"]


def prepare_sweep(loaded: LoadedRecipe, base: Path, *, are_many_fine: bool = False) -> PreparedSweep:
    """Return the prepared cells of a recipe with a sweep.

    A RecipeError shows everything that is wrong with any of them. Inputs that are missing are in `problems`.
    """
    section = loaded.recipe.sweep
    assert section is not None, "the recipe has a sweep"
    cells = list_cells(loaded, are_many_fine=are_many_fine)
    return PreparedSweep(loaded=loaded, section=section, cells=prepare_cells(loaded, cells, base))


def prepare_cells(
    loaded: LoadedRecipe, cells: Sequence[Cell], base: Path, *, may_repeat: bool = False
) -> tuple[PreparedCell, ...]:
    """Return the prepared cells of a sweep; see `prepare_sweep`. Some may compute the same if they `may_repeat`."""
    assert loaded.recipe.sweep is not None, "the recipe has a sweep"
    until = loaded.recipe.sweep.until
    prepared: list[Prepared] = []

    def compile_cell(cell: LoadedRecipe) -> Plan:
        prepared.append(prepare(cell, base))
        return prepared[-1].plan

    compile_cells(loaded, cells, compile_cell, may_repeat=may_repeat)
    return tuple(_look_up(cell, one, until) for cell, one in zip(cells, prepared, strict=True))


def _look_up(cell: Cell, prepared: Prepared, until: str | None) -> PreparedCell:
    selected = [stage.name for stage in stages_until(prepared.plan, until)]
    lookups = tuple(lookup for lookup in prepared.look_up_cache() if lookup.stage.name in selected)
    return PreparedCell(cell=replace(cell, loaded=prepared.loaded), prepared=prepared, lookups=lookups)
