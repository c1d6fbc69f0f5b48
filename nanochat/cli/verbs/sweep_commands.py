"""The verbs of `nanochat-run` about sweeps: sweep and best; and the parts of run and plan for recipes with a sweep."""

from __future__ import annotations

import argparse
from pathlib import Path

from nanochat import runtime
from nanochat.cli.json_output import print_json
from nanochat.cli.verbs.recipe_commands import command_to_continue, overrides_of
from nanochat.errors import PreflightError, RecipeError
from nanochat.plurals import several
from nanochat.recipe.load import LoadedRecipe, load_recipe
from nanochat.runner.sweeps.preparing.prepare_sweep import prepare_sweep
from nanochat.runner.sweeps.preparing.sweep_plan_report import sweep_report_json, sweep_report_text


def sweep(options: argparse.Namespace) -> None:
    """Run the cells of a sweep, or one of them, or print the script with which a scheduler runs them."""
    loaded = load_recipe(options.recipe, overrides_of(options))
    if loaded.recipe.sweep is None:
        raise RecipeError(f"{loaded.path} has no section `sweep`; run it with `{loaded.command()}`")
    if options.emit is not None:
        _emit(options, loaded)
    else:
        run_cells(options, loaded, cell=options.cell)


def run_cells(options: argparse.Namespace, loaded: LoadedRecipe, *, cell: int | None = None) -> None:
    """Run the cells of a sweep, or one of them, and show where the report is."""
    from nanochat.cli.progress import make_display
    from nanochat.runner.sweeps.running.cell_runner import SweepRequest
    from nanochat.runner.sweeps.running.run_sweep import run_one_cell, run_sweep

    display = make_display()
    request = SweepRequest(
        base=runtime.base_dir(),
        folder=Path.cwd(),
        command=command_to_continue(options.arguments),
        are_many_fine=options.yes,
        stops_at_failure=options.fail_fast,
    )
    try:
        if cell is None:
            run_sweep(loaded, request, display)
        else:
            run_one_cell(loaded, request, display, cell)
    finally:
        display.clear_progress()


def _emit(options: argparse.Namespace, loaded: LoadedRecipe) -> None:
    from nanochat.runner.sweeps.running.remote import slurm_script

    if search := loaded.recipe.sweep and loaded.recipe.sweep.search:
        raise RecipeError(f"a search with {search.engine} chooses its cells one after another; it has no job array")
    base = runtime.base_dir()
    prepared = prepare_sweep(loaded, base, are_many_fine=options.yes)
    given = [word for override in loaded.overrides for word in ("--set", override)]
    command = ["nanochat-run", "sweep", str(loaded.path.absolute()), *given]
    print(slurm_script(prepared, command, base=base, folder=Path.cwd()), end="")


def best(options: argparse.Namespace) -> None:
    """Print the recipe of the best setting of a sweep."""
    from nanochat.runner.sweeps.results.sweep_catalog import best_recipe

    print(best_recipe(options.sweep, runtime.base_dir()), end="")


def plan_sweep(options: argparse.Namespace, loaded: LoadedRecipe) -> None:
    """Print the cells of a sweep, the stages that they share, and what all of it would cost.

    Raises PreflightError at the end if inputs are missing.
    """
    if options.why is not None:
        raise RecipeError(
            "`--why` explains a stage of a single run, but this recipe has a sweep; add `--set sweep=null`"
        )
    sweep = prepare_sweep(loaded, runtime.base_dir(), are_many_fine=options.yes)
    if options.json:
        print_json(sweep_report_json(sweep))
    else:
        print(sweep_report_text(sweep), end="")
    if count := len(sweep.problems):
        raise PreflightError(f"{several(count, 'problem')} to fix before the sweep can start, listed above")
