"""The commands that work on recipes and their data: run, plan, recipes, new, check, show, diff, data and fetch."""

from __future__ import annotations

from pathlib import Path

from nanochat.cli.arguments.parser import (
    Parser,
    Verb,
    add_json,
    add_overrides,
    add_recipe,
    add_stage,
    count,
    positive,
    stage_or_all,
)


def _run(parser: Parser) -> None:
    add_recipe(parser)
    add_stage(parser, "--only", help="run only this stage")
    add_stage(parser, "--from", dest="first", help="run this stage and the stages after it")
    add_stage(parser, "--until", dest="last", help="stop after this stage")
    parser.add_argument(
        "--force",
        metavar="STAGE",
        action="append",
        default=[],
        type=stage_or_all,
        help="run this stage even if it is finished (repeatable; `all` for every stage)",
    )
    parser.add_argument("--fail-fast", action="store_true", help="for a sweep: stop when the first cell fails")
    _add_yes(parser)


def _add_yes(parser: Parser) -> None:
    parser.add_argument("--yes", action="store_true", help="allow a sweep to have more than 1,000 cells")


def _plan(parser: Parser) -> None:
    add_recipe(parser)
    add_stage(parser, "--why", help="explain why this stage would run or not")
    add_json(parser)
    parser.add_argument(
        "--mac", metavar="GIB", type=positive, help="plan for a Mac with this much memory, such as 16, not this machine"
    )
    _add_yes(parser)


def _sweep(parser: Parser) -> None:
    add_recipe(parser)
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--cell", metavar="I", type=positive, help="run only this cell, counted from 1")
    part.add_argument("--emit", choices=("slurm",), help="print a job array script that runs one cell per job")
    parser.add_argument("--fail-fast", action="store_true", help="stop when the first cell fails")
    _add_yes(parser)


def _check(parser: Parser) -> None:
    parser.add_argument("recipes", metavar="RECIPE", type=Path, nargs="+", help="recipe files or names of recipes")
    add_overrides(parser)
    _add_yes(parser)


def _show(parser: Parser) -> None:
    add_recipe(parser)
    parser.add_argument("--origin", action="store_true", help="show which line or flag set each value")


def _diff(parser: Parser) -> None:
    parser.add_argument("recipes", metavar="RECIPE", type=Path, nargs=2, help="two recipe files or names of recipes")


def _new(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="a recipe that comes with nanochat")
    parser.add_argument("file", metavar="FILE", type=Path, help="file to write, such as mine.yaml")


def _data(parser: Parser) -> None:
    add_recipe(parser)
    parser.add_argument("source", metavar="SOURCE", nargs="?", help="a source of the recipe (default: all of them)")
    parser.add_argument(
        "--limit",
        metavar="N",
        type=count,
        default=10_000,
        help="documents or conversations to read of each split (default: %(default)s; 0 for all)",
    )
    add_json(parser)


RUNNING = (
    Verb(
        "run",
        "run a recipe: skip stages that are finished, and resume those that were interrupted",
        "recipe_commands.run",
        ("run quickstart", "run quickstart --set sft.horizon.tokens=300K --force chat_eval"),
        _run,
    ),
    Verb(
        "plan",
        "show what would run, why, and what it would cost",
        "recipe_commands.plan",
        ("plan quickstart", "plan quickstart --set seed=7 --why sft", "plan speedrun --mac 32"),
        _plan,
    ),
    Verb(
        "sweep",
        "run the cells of a recipe's sweep, or one of them on any machine that sees the base folder",
        "sweep_commands.sweep",
        ("sweep scaling_small --cell 3", "sweep scaling_small --emit slurm"),
        _sweep,
    ),
)
EDITING = (
    Verb(
        "recipes",
        "list the recipes that come with nanochat, with purpose and cost",
        "shipped_commands.recipes",
        ("recipes",),
    ),
    Verb(
        "new",
        "copy a recipe that comes with nanochat, to edit it",
        "shipped_commands.new",
        ("new quickstart mine.yaml",),
        _new,
    ),
    Verb(
        "check",
        "validate recipes without running them",
        "recipe_commands.check",
        ("check quickstart speedrun",),
        _check,
    ),
    Verb(
        "show",
        "show a recipe with all defaults filled in",
        "recipe_commands.show",
        ("show speedrun --origin",),
        _show,
    ),
    Verb(
        "diff",
        "compare two recipes, defaults included",
        "recipe_commands.diff",
        ("diff d4 d6",),
        _diff,
    ),
)
DATA = (
    Verb(
        "data",
        "show how much data there is, of what kind, and the first of it",
        "data_commands.data",
        ("data quickstart", "data quickstart stdlib --limit 100"),
        _data,
    ),
    Verb(
        "fetch",
        "download, pin and convert all that a run needs, then stop",
        "data_commands.fetch",
        ("fetch speedrun",),
        add_recipe,
    ),
)
