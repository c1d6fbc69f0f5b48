"""The arguments of `nanochat-run`. A first word that is a verb is one, unless it names a recipe file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from nanochat.errors import RecipeError
from nanochat.recipe.schema.recipe import STAGE_SECTIONS

VERBS = (
    "plan", "check", "show", "diff", "schema", "ls", "report", "compare", "gc", "ui", "import", "export", "verify",
)  # fmt: skip
_EPILOG = """\
other forms:
  nanochat-run plan RECIPE [--why STAGE] [--json]   what would run and why, and what it would cost
  nanochat-run check RECIPE...                      validate only
  nanochat-run show RECIPE [--origin]               the recipe with everything resolved
  nanochat-run diff A B                             compare two recipes, resolved
  nanochat-run schema [--check | --write]           the JSON Schema for editors
  nanochat-run ls                                   runs on this machine
  nanochat-run report RUN | compare RUN...          results
  nanochat-run gc [--dry-run]                       drop stage outputs that no run refers to
  nanochat-run ui                                   browse results in MLflow
  nanochat-run import WEIGHTS FOLDER --tokenizer FILE [--config FILE]
                                                    a model folder from PyTorch nanochat's weights
  nanochat-run export RUN_OR_FOLDER WEIGHTS         and back, as safetensors
  nanochat-run verify                               seven checks of the machine's arithmetic

exit codes: 0 done or nothing to do, 1 a bug, 2 recipe or usage, 3 preflight, 4 a stage failed, 5 an expectation was
not met, 6 another run holds a lock, 75 stopped by a signal (the same command continues)
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RecipeError(f"{message}\n{self.format_usage().rstrip()}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the arguments, with the verb as `verb` (`run` for `nanochat-run RECIPE`).

    Raises:
        RecipeError: they are wrong.
    """
    if arguments and arguments[0] in VERBS and not is_recipe_file(arguments[0]):
        return _verb_parser(arguments[0]).parse_args(arguments[1:])
    return _run_parser().parse_args(arguments)


def is_recipe_file(word: str) -> bool:
    """Return whether a word names a recipe file rather than a verb."""
    return word.endswith((".yaml", ".yml")) or Path(word).suffix in (".yaml", ".yml")


def _run_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="nanochat-run",
        description="Run a recipe: what is done is skipped, what was stopped goes on.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_recipe(parser)
    parser.add_argument("--only", metavar="STAGE", choices=STAGE_SECTIONS, help="run only this stage")
    parser.add_argument("--from", dest="first", metavar="STAGE", choices=STAGE_SECTIONS, help="run from this stage on")
    parser.add_argument("--until", dest="last", metavar="STAGE", choices=STAGE_SECTIONS, help="stop after this stage")
    parser.add_argument(
        "--force",
        metavar="STAGE",
        action="append",
        default=[],
        choices=(*STAGE_SECTIONS, "all"),
        help="compute this stage again though it is done (repeatable; `all` for every stage)",
    )
    parser.set_defaults(verb="run")
    return parser


def _verb_parser(verb: str) -> argparse.ArgumentParser:
    parser = _Parser(prog=f"nanochat-run {verb}", allow_abbrev=False)
    parser.set_defaults(verb=verb)
    match verb:
        case "plan":
            _add_recipe(parser)
            parser.add_argument("--why", metavar="STAGE", choices=STAGE_SECTIONS, help="why this stage runs or not")
            parser.add_argument("--json", action="store_true", help="print JSON")
        case "check":
            parser.add_argument("recipes", metavar="RECIPE", type=Path, nargs="+")
            _add_overrides(parser)
        case "show":
            _add_recipe(parser)
            parser.add_argument("--origin", action="store_true", help="say which line or flag set each value")
        case "diff":
            parser.add_argument("recipes", metavar="RECIPE", type=Path, nargs=2)
        case "schema":
            mode = parser.add_mutually_exclusive_group()
            mode.add_argument("--check", action="store_true", help="fail where the schema file is not fresh")
            mode.add_argument("--write", action="store_true", help="write the schema file")
            parser.add_argument("--file", type=Path, default=Path("schemas/recipe.schema.json"), help="the schema file")
            parser.add_argument("--readme", type=Path, help="a file whose recipe reference is written or checked too")
        case "report":
            parser.add_argument("run", metavar="RUN", help="a run's name, NAME/TIME, or its folder")
        case "compare":
            parser.add_argument("runs", metavar="RUN", nargs="+")
        case "import":
            parser.add_argument("weights", metavar="WEIGHTS", type=Path, help="model_*.pt or a safetensors file")
            parser.add_argument("folder", metavar="FOLDER", type=Path, help="the model folder to write")
            parser.add_argument(
                "--tokenizer", metavar="FILE", type=Path, required=True, help="its tokenizer.model, or the folder of it"
            )
            parser.add_argument(
                "--config", metavar="FILE", type=Path, help="meta_*.json (default: the one beside the weights)"
            )
            parser.add_argument(
                "--architecture",
                choices=("seed", "current"),
                help="where the configuration does not say (default: seed)",
            )
        case "export":
            parser.add_argument("model", metavar="RUN_OR_FOLDER", help="a run's name or a model folder")
            parser.add_argument("weights", metavar="WEIGHTS", type=Path, help="the safetensors file to write")
        case "gc":
            parser.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
        case "ui":
            parser.add_argument("--port", type=int, default=5000)
            parser.add_argument("--uri", help="tracking store (default: MLFLOW_TRACKING_URI, else ./mlflow.db)")
        case _:
            pass
    return parser


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", type=Path, help="a recipe file")
    _add_overrides(parser)


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="set a value of the recipe by its dotted path (repeatable)",
    )
    parser.add_argument("--offline", action="store_true", help="never touch the network (run.offline)")
