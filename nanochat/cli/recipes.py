"""The verbs about recipes: run, plan, check, show, diff, schema."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from nanochat import runtime
from nanochat.errors import RecipeError
from nanochat.recipe.load import load_recipe


def run(options: argparse.Namespace, given: Sequence[str]) -> None:
    """Run a recipe."""
    from nanochat.cli.progress import make_display
    from nanochat.runner.pipeline import run_recipe
    from nanochat.runner.stage_loop import RunRequest

    display = make_display()
    request = RunRequest(
        recipe=options.recipe,
        base=runtime.base_dir(),
        folder=Path.cwd(),
        command=_command(given),
        overrides=_overrides(options),
        only=options.only,
        first=options.first,
        last=options.last,
        force=tuple(options.force),
    )
    try:
        run_recipe(request, display)
    finally:
        display.clear_progress()


def plan(options: argparse.Namespace) -> None:
    """Print what would run and why."""
    from nanochat.runner.preflight.plan_report import explain_stage, plan_report_json, plan_report_text
    from nanochat.runner.preflight.prepare import prepare, select_stages

    prepared = prepare(load_recipe(options.recipe, _overrides(options)), runtime.base_dir())
    judged, selected = prepared.judge(), select_stages(prepared.plan)
    if options.json:
        print(json.dumps(plan_report_json(prepared, judged, selected), indent=2))
    elif options.why is not None:
        select_stages(prepared.plan, only=options.why)
        print(explain_stage(prepared, judged, options.why))
    else:
        print(plan_report_text(prepared, judged, selected), end="")


def check(options: argparse.Namespace) -> None:
    """Validate recipes, planning included; every recipe is looked at."""
    from nanochat.plan.compile import compile_plan

    problems = []
    for path in options.recipes:
        try:
            compile_plan(load_recipe(path, _overrides(options)))
        except RecipeError as error:
            problems.append(str(error))
        else:
            print(f"{path}: ok")
    if problems:
        raise RecipeError("\n\n".join(problems))


def show(options: argparse.Namespace) -> None:
    """Print the resolved recipe."""
    from nanochat.recipe.show import resolved_yaml, yaml_with_origins

    loaded = load_recipe(options.recipe, _overrides(options))
    print(yaml_with_origins(loaded) if options.origin else resolved_yaml(loaded), end="")


def diff(options: argparse.Namespace) -> None:
    """Print the values in which two resolved recipes differ."""
    from nanochat.recipe.show import diff_recipes

    first, second = (load_recipe(path).recipe for path in options.recipes)
    for name, before, after in diff_recipes(first, second):
        print(f"{name}: {json.dumps(before)} -> {json.dumps(after)}")


def schema(options: argparse.Namespace) -> None:
    """Print, write or check the JSON Schema, and the README's reference along with it."""
    from nanochat.recipe.json_schema import schema_is_fresh, schema_text, write_schema
    from nanochat.recipe.schema_docs import reference_is_fresh, update_reference

    if options.write:
        options.file.parent.mkdir(parents=True, exist_ok=True)
        write_schema(options.file)
        if options.readme is not None:
            update_reference(options.readme)
    elif options.check:
        stale = [options.file] * (not schema_is_fresh(options.file))
        if options.readme is not None and not reference_is_fresh(options.readme):
            stale.append(options.readme)
        if stale:
            names = " and ".join(str(path) for path in stale)
            raise RecipeError(f"{names}: not what the schema says; write it with `just schemas`")
    else:
        print(schema_text(), end="")


def _overrides(options: argparse.Namespace) -> tuple[str, ...]:
    return (*options.overrides, *(["run.offline=true"] if options.offline else []))


def _command(given: Sequence[str]) -> str:
    """Return the command as typed, without `--force`: to continue is not to begin anew."""
    words = []
    skip = False
    for word in given:
        if skip or word.startswith("--force="):
            skip = False
            continue
        if word == "--force":
            skip = True
            continue
        words.append(word)
    return shlex.join(["nanochat-run", *words])
