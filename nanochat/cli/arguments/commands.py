"""The table of all commands of `nanochat-run`, the overview that `--help` prints, and the reading of a command line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from nanochat.cli.arguments.machine import MACHINE
from nanochat.cli.arguments.models import MODELS
from nanochat.cli.arguments.parser import Parser, Verb, add_version
from nanochat.cli.arguments.recipes import DATA, EDITING, RUNNING
from nanochat.cli.arguments.results import RESULTS
from nanochat.errors import RecipeError
from nanochat.recipe.shipped import find_recipe, shipped_recipes

_GROUPS: dict[str, tuple[Verb, ...]] = {
    "run recipes": RUNNING,
    "read recipes": EDITING,
    "data": DATA,
    "results": RESULTS,
    "models": MODELS,
    "this machine": MACHINE,
}
VERBS = {verb.name: verb for group in _GROUPS.values() for verb in group}
_NAME = re.compile(r"[A-Za-z]\w*")
_EXIT_CODES = """\
exit codes: 0 finished, or nothing to do; 1 a bug in nanochat; 2 a mistake in the recipe or the arguments; 3 something
that the run needs is missing; 4 a stage failed; 5 a result did not meet the recipe's `expect`; 6 another run is using
the same stage; 75 stopped by a signal (run the same command to continue)
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the parsed arguments, with the command as `verb`. It is `run` if the first word is none of `VERBS`.

    Raises:
        RecipeError: an argument is wrong, or the first word is neither a recipe nor a command.
    """
    if not arguments:
        _overview().error("name a recipe or a command; `nanochat-run --help` lists the commands")
    if arguments[0] in ("-h", "--help", "--version"):
        return _overview().parse_args(arguments)
    if arguments[0] in VERBS:
        return VERBS[arguments[0]].parser().parse_args(arguments[1:])
    _check_name(arguments[0])
    return VERBS["run"].parser().parse_args(arguments)


def _check_name(word: str) -> None:
    """Raise RecipeError if a word is neither the name of a recipe nor anything else that a recipe's path could be."""
    if not _NAME.fullmatch(word) or find_recipe(Path(word)).exists():
        return
    from nanochat.recipe.schema.suggestions import closest

    beside = {file.stem: file.name for file in Path().glob("*.y*ml")}
    names = beside | {name: name for name in (*VERBS, *shipped_recipes())}
    likely = closest(word, names)
    hint = (
        f"did you mean `{names[likely]}`?"
        if likely
        else "`nanochat-run --help` lists commands, `nanochat-run recipes` recipes"
    )
    raise RecipeError(f"there is no recipe or command `{word}`; {hint}")


def _overview() -> Parser:
    width = max(map(len, VERBS))
    lines = []
    for title, verbs in _GROUPS.items():
        lines += [f"{title}:", *(f"  {verb.name:{width}}  {verb.summary}" for verb in verbs), ""]
    lines.append("`nanochat-run COMMAND --help` describes the options of a command and has an example.\n")
    parser = Parser(
        prog="nanochat-run",
        usage="nanochat-run RECIPE [options]\n       nanochat-run COMMAND ...",
        description="Run a recipe, as the command `run` does, or another command.",
        epilog="\n".join([*lines, _EXIT_CODES]),
    )
    add_version(parser)
    return parser
