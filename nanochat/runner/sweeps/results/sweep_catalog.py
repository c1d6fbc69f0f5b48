"""Finds the sweeps on this machine, a sweep by its name, and the recipe that won it."""

from __future__ import annotations

from pathlib import Path

from nanochat.errors import PreflightError, RecipeError
from nanochat.plurals import several
from nanochat.recipe.load import load_recipe
from nanochat.recipe.schema.suggestions import did_you_mean
from nanochat.recipe.show import resolved_yaml
from nanochat.runner.store.locks import is_locked
from nanochat.runner.store.sweep_state import SweepState, describe_damaged_sweep, read_sweep
from nanochat.runner.sweeps.results.cell_results import SweepResults, group_by_setting, read_sweep_results
from nanochat.runner.sweeps.results.result_table import describe_setting, show_mean
from nanochat.storage.layout import SweepFolder, sweep_folders, sweeps_folder


def list_sweeps(base: Path) -> list[SweepResults]:
    """Return the sweeps whose state can be read, the newest last."""
    return [
        read_sweep_results(folder, state, base, is_active=is_locked(folder))
        for folder in sweep_folders(base)
        if (state := read_sweep(folder)) is not None
    ]


def list_damaged_sweeps(base: Path) -> list[SweepFolder]:
    """Return the folders of sweeps whose state cannot be read, sorted by their time."""
    return [folder for folder in sweep_folders(base) if read_sweep(folder) is None]


def find_sweep(name: str, base: Path) -> tuple[SweepFolder, SweepState]:
    """Return the sweep that NAME (the latest one of it) or NAME/TIME means, or raise a RecipeError."""
    sweep = look_for_sweep(name, base)
    if sweep is not None:
        return sweep
    wanted = name.strip("/").partition("/")[0]
    same_name = [folder for folder in sweep_folders(base) if folder.path.parent.name == wanted]
    if same_name:
        raise RecipeError(
            f"no sweep `{name}`; those of this name are {', '.join(folder.reference for folder in same_name)}"
        )
    names = sorted({folder.path.parent.name for folder in sweep_folders(base)})
    where = f"under {sweeps_folder(base)}"
    help_ = did_you_mean(wanted, names) if names else "run a recipe that has a section `sweep`"
    raise RecipeError(f"no sweep `{name}` {where}; {help_}")


def look_for_sweep(name: str, base: Path) -> tuple[SweepFolder, SweepState] | None:
    """Return the sweep that a name means, or None if there is none. A RecipeError says that it is damaged."""
    wanted, _, time = name.strip("/").partition("/")
    same_name = [folder for folder in sweep_folders(base) if folder.path.parent.name == wanted]
    folder = next((folder for folder in reversed(same_name) if time in ("", folder.path.name)), None)
    if folder is None:
        return None
    state = read_sweep(folder)
    if state is None:
        raise RecipeError(f"the sweep `{name}` cannot be read: {describe_damaged_sweep(folder)}")
    return folder, state


def best_recipe(name: str, base: Path) -> str:
    """Return the recipe with the best setting of a sweep as a file that runs on its own, with its first seed.

    Its stages are those of the cell, so they are taken from the cache; stages after `sweep.until` run. Raises
    RecipeError if there is no such sweep, or it does not rank its cells, and PreflightError if no cell is finished.
    """
    folder, state = find_sweep(name, base)
    if state.section.ranking is None:
        raise RecipeError(f"the sweep {folder.reference} does not rank its cells; add `sweep.rank_by` to its recipe")
    metric, order = state.section.ranking
    sweep = read_sweep_results(folder, state, base)
    ranked = sweep.ranked
    if not ranked:
        raise PreflightError(
            f"no setting of the sweep {folder.reference} has `{metric}` for all of its seeds yet; "
            f"continue it with `{state.command}`"
        )
    winner = ranked[0]
    run = winner.cells[0].run
    assert run is not None, "a cell with a result has a run"
    loaded = load_recipe(run.folder.resolved, [f"name={state.name[:59]}_best"])
    described = describe_setting(winner.values, sweep.names)
    unranked = len(group_by_setting(sweep.cells)) - len(ranked)
    missing = f" ({unranked} more without a result)" if unranked else ""
    return (
        f"# The best of {several(len(ranked), 'setting')}{missing} of the sweep {folder.reference}, by {metric} "
        f"({order}): {show_mean(winner, metric)}\n# {described or 'the seed'}\n{resolved_yaml(loaded)}"
    )
