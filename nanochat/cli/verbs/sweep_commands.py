"""What the verbs of `nanochat-run` do with a recipe that has a sweep."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from nanochat import runtime
from nanochat.errors import PreflightError, RecipeError
from nanochat.plan.describe import several
from nanochat.recipe.load import LoadedRecipe
from nanochat.runner.sweeps.plan_report import sweep_report_json, sweep_report_text
from nanochat.runner.sweeps.prepared import prepare_sweep


def run_cells(options: argparse.Namespace, loaded: LoadedRecipe) -> None:
    """Run the cells of a sweep.

    Raises RecipeError if options select stages, because `sweep.until` does that for all cells.
    """
    from nanochat.cli.progress import make_display
    from nanochat.cli.verbs.recipe_commands import command_to_continue
    from nanochat.runner.sweeps.run import SweepRequest, run_sweep

    if options.only or options.first or options.last or options.force:
        flags = "`--only`, `--from`, `--until` and `--force` select stages of a single run"
        raise RecipeError(f"{flags}, but this recipe has a sweep; write `sweep.until`, or run one cell by itself")
    display = make_display()
    request = SweepRequest(
        base=runtime.base_dir(),
        folder=Path.cwd(),
        command=command_to_continue(options.arguments),
        are_many_fine=options.yes,
        stops_at_failure=options.fail_fast,
    )
    try:
        run_sweep(loaded, request, display)
    finally:
        display.clear_progress()


def plan_sweep(options: argparse.Namespace, loaded: LoadedRecipe) -> None:
    """Print the cells of a sweep, the stages that they share, and what all of it would cost.

    Raises PreflightError at the end if inputs are missing.
    """
    if options.why is not None:
        raise RecipeError(
            "`--why` explains a stage of a single run, but this recipe has a sweep; add `--set sweep=null`"
        )
    sweep = prepare_sweep(loaded, runtime.base_dir(), are_many_fine=True)
    if options.json:
        print(json.dumps(sweep_report_json(sweep), indent=2))
    else:
        print(sweep_report_text(sweep), end="")
    if count := len(sweep.problems):
        raise PreflightError(f"{several(count, 'problem')} to fix before the sweep can start, listed above")
