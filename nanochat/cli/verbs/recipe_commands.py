"""The verbs of `nanochat-run` that work on recipes: run, plan, check, show, diff and schema."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat import runtime
from nanochat.cli.json_output import print_json
from nanochat.data.places.connection import is_offline
from nanochat.errors import PreflightError, RecipeError
from nanochat.plurals import several
from nanochat.recipe.load import LoadedRecipe, load_recipe

if TYPE_CHECKING:
    from nanochat.plan.plan import Plan

_CACHED_HERE = (
    "stages that are cached here count as done on the Mac too; to see what all of them cost, set NANOCHAT_BASE_DIR to "
    "a new folder"
)


def run(options: argparse.Namespace) -> None:
    """Run a recipe, or all cells of its sweep."""
    from nanochat.cli.progress import make_display
    from nanochat.runner.pipeline import run_recipe
    from nanochat.runner.preflight.run_context import RunRequest

    loaded = load_recipe(options.recipe, overrides_of(options))
    if loaded.recipe.sweep is not None:
        from nanochat.cli.verbs.sweep_commands import run_cells

        if options.only or options.first or options.last or options.force:
            flags = "`--only`, `--from`, `--until` and `--force` select stages of a single run"
            raise RecipeError(f"{flags}, but this recipe has a sweep; write `sweep.until`, or run one cell by itself")
        run_cells(options, loaded)
        return
    if options.fail_fast or options.yes:
        raise RecipeError("`--fail-fast` and `--yes` are for sweeps, and this recipe has no section `sweep`")
    display = make_display()
    request = RunRequest(
        base=runtime.base_dir(),
        folder=Path.cwd(),
        command=command_to_continue(options.arguments),
        only=options.only,
        first=options.first,
        last=options.last,
        force=tuple(options.force),
    )
    try:
        run_recipe(loaded, request, display)
    finally:
        display.clear_progress()


def plan(options: argparse.Namespace) -> None:
    """Print which stages would run, why, and what they would cost.

    Raises PreflightError at the end if a run would be refused, because of its data.
    """
    from nanochat.cli.verbs.sweep_commands import plan_sweep
    from nanochat.runner.preflight.plan_checks import check_plan
    from nanochat.runner.preflight.plan_report import (
        explain_stage,
        explain_stage_text,
        plan_report_json,
        plan_report_text,
    )
    from nanochat.runner.preflight.prepare import prepare, select_stages

    loaded = load_recipe(options.recipe, overrides_of(options))
    if loaded.recipe.sweep is not None:
        if options.mac is not None:
            raise RecipeError("`--mac` is for a single recipe, and this one has a section `sweep`")
        plan_sweep(options, loaded)
        return
    prepared = prepare(loaded, runtime.base_dir(), mac_bytes=None if options.mac is None else options.mac * 2**30)
    lookups, selected = prepared.look_up_cache(), select_stages(prepared.plan)
    if options.mac is not None and any(lookup.action == "cached" for lookup in lookups):
        prepared = replace(prepared, plan=replace(prepared.plan, notes=(*prepared.plan.notes, _CACHED_HERE)))
    if options.why is not None:
        select_stages(prepared.plan, only=options.why)
        explanation = explain_stage(prepared, lookups, options.why)
        print_json(explanation) if options.json else print(explain_stage_text(explanation))
        return
    checks = check_plan(prepared)
    if options.json:
        print_json(plan_report_json(prepared, lookups, selected, checks))
    else:
        print(plan_report_text(prepared, lookups, selected, checks), end="")
    if count := len(prepared.problems) + len(checks.problems):
        raise PreflightError(f"{several(count, 'problem')} to fix before the run can start, listed above")


def check(options: argparse.Namespace) -> None:
    """Validate every recipe, print its warnings, and raise one RecipeError with the problems of all of them."""
    from nanochat.plan.compile import compile_plan
    from nanochat.plan.sweeps import compile_sweep
    from nanochat.runner.preflight.starting_weights import known_start_models

    def compile_here(loaded: LoadedRecipe) -> Plan:
        return compile_plan(loaded, start_models=known_start_models(loaded.recipe, runtime.base_dir()))

    problems = []
    for path in options.recipes:
        try:
            loaded = load_recipe(path, overrides_of(options))
            if loaded.recipe.sweep is None:
                compile_here(loaded)
            else:  # cells may have the model of the weights that they start from, although the recipe has not
                compile_plan(loaded)
                compile_sweep(loaded, compile_here, are_many_fine=options.yes)
        except RecipeError as error:
            problems.append(str(error))
        else:
            warnings = loaded.warnings() if loaded.recipe.sweep is None else []  # cells may change either field
            print("\n  ".join([f"{path}: ok", *(f"warning: {warning}" for warning in warnings)]))
    if problems:
        raise RecipeError("\n\n".join(problems))


def show(options: argparse.Namespace) -> None:
    """Print the recipe with all defaults filled in."""
    from nanochat.recipe.show import resolved_yaml, yaml_with_origins

    loaded = load_recipe(options.recipe, overrides_of(options))
    print(yaml_with_origins(loaded) if options.origin else resolved_yaml(loaded), end="")


def diff(options: argparse.Namespace) -> None:
    """Print the values in which two recipes differ, defaults included."""
    from nanochat.recipe.show import diff_recipes

    first, second = (load_recipe(path).recipe for path in options.recipes)
    for name, before, after in diff_recipes(first, second):
        print(f"{name}: {json.dumps(before)} -> {json.dumps(after)}")


def schema(options: argparse.Namespace) -> None:
    """Print the JSON Schema of recipes; or write it and the reference page, or check that both are up to date."""
    from nanochat.recipe.json_schema import schema_text
    from nanochat.recipe.schema_docs import reference_text
    from nanochat.recipe.shipped import SCHEMA_FILE
    from nanochat.storage.files import write_text

    files = {SCHEMA_FILE: schema_text, "README.md": reference_text}
    if options.write:
        options.folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_text(options.folder / name, content())
    elif options.check:
        paths = {options.folder / name: content() for name, content in files.items()}
        stale = [str(path) for path, text in paths.items() if not path.is_file() or path.read_text("utf-8") != text]
        if stale:
            names = " and ".join(stale)
            raise RecipeError(f"{names}: out of date with nanochat/recipe/schema; run `just schemas` to update")
    else:
        print(schema_text(), end="")


def command_to_continue(arguments: Sequence[str]) -> str:
    """Return the command line without `--force`, which would discard the work that is to be continued."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--force")
    return shlex.join(["nanochat-run", *parser.parse_known_args(arguments)[1]])


def overrides_of(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the values that the command line sets in the recipe."""
    return (*options.overrides, *(["run.offline=true"] if options.offline or is_offline() else []))
