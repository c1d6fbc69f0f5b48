"""What the verbs of `nanochat-run` do with a recipe that has a sweep."""

from __future__ import annotations

import argparse
import json

from nanochat import runtime
from nanochat.errors import PreflightError, RecipeError
from nanochat.plan.describe import several
from nanochat.recipe.load import LoadedRecipe
from nanochat.runner.sweeps.plan_report import sweep_report_json, sweep_report_text
from nanochat.runner.sweeps.prepared import prepare_sweep


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
