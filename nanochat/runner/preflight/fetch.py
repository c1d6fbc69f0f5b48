"""Download, pin and convert everything that a recipe reads, so that its run needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from nanochat.errors import PreflightError
from nanochat.recipe.load import load_recipe
from nanochat.runner.display import Display
from nanochat.runner.preflight.data_checks import check_inputs, fetch_inputs
from nanochat.runner.preflight.hub_pins import pin_sources
from nanochat.runner.preflight.prepare import prepare
from nanochat.runner.process.interrupts import Interrupts
from nanochat.runner.store.needed_data import add_needed, fetched_list
from nanochat.runtime import check_base_dir


def fetch_recipe(recipe: Path, overrides: Sequence[str], *, base: Path, display: Display) -> None:
    """Bring the data of all stages onto this machine, and check them as a run would.

    Raises:
        RecipeError: the recipe is not valid.
        PreflightError: the base folder cannot be written, or an input is missing, cannot be downloaded or does not have
            the format that its stage reads.
        StageError: a file that is to be converted is damaged.
        InterruptedRun: a signal arrived. The same command continues.
    """
    loaded = load_recipe(recipe, overrides)
    check_base_dir(base)
    if pinned := pin_sources(loaded, base):
        display.log_line(pinned)
    prepared = prepare(loaded, base)
    if prepared.problems:
        raise PreflightError("\n".join(prepared.problems))
    stages = prepared.plan.stages
    with Interrupts(display.clear_progress) as interrupts:
        needed = fetched_list(loaded.path, base=base)
        needed.unlink(missing_ok=True)
        add = partial(add_needed, needed, base=base, recipe=loaded.path)
        fetch_inputs(stages, base, add, display=display, interrupts=interrupts)
    if problems := check_inputs(stages, base):
        raise PreflightError("\n".join(problems))
    names = dict.fromkeys(source.name for stage in stages for source in stage.read_sources)
    display.log_line(f"all data of {prepared.plan.recipe_name} are here and can be read: {', '.join(names)}")
    display.log_line(f"to train without network: {loaded.command()} --offline")
