"""The command line of `nanochat-run`: verbs, options and help texts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from nanochat.errors import RecipeError
from nanochat.inference.batch_sizes import GENERATED_ROWS
from nanochat.model.config import VARIANTS
from nanochat.recipe.check.tracking_values import LAST_PORT, MLFLOW_PORT
from nanochat.recipe.schema.recipe import STAGE_SECTIONS
from nanochat.recipe.schema.suggestions import closest

VERBS = (
    "plan", "check", "show", "diff", "data", "fetch", "schema", "ls", "report", "compare", "gc", "ui", "import",
    "export", "serve", "verify",
)  # fmt: skip
_EPILOG = """\
other forms:
  nanochat-run plan RECIPE [--why STAGE] [--json]   show what would run, why, and what it would cost
  nanochat-run check RECIPE...                      validate recipes without running them
  nanochat-run show RECIPE [--origin]               show the recipe with all defaults filled in
  nanochat-run diff A B                             compare two recipes, defaults included
  nanochat-run data RECIPE [SOURCE] [--limit N]     show how much data there is, of what kind, and the first of it
  nanochat-run fetch RECIPE                         download, pin and convert all that a run needs, then stop
  nanochat-run schema [--check | --write]           print the JSON Schema of recipes, for editors
  nanochat-run ls                                   list the runs on this machine
  nanochat-run report RUN | compare RUN...          show the results of one run or of several
  nanochat-run gc [--dry-run]                       delete results and data that no run uses
  nanochat-run ui                                   browse results in MLflow
  nanochat-run import MODEL FOLDER                  convert a model of nanochat, mlx-lm or transformers to ours
  nanochat-run export RUN_OR_FOLDER FOLDER --format mlx | hf | torch
                                                    write a model for mlx-lm, transformers or PyTorch nanochat
  nanochat-run serve RUN_OR_FOLDER                  chat in the browser, and an OpenAI-compatible API
  nanochat-run verify                               check this machine's arithmetic in seven ways

`nanochat-run VERB --help` describes the options of a verb.

exit codes: 0 finished, or nothing to do; 1 a bug in nanochat; 2 a mistake in the recipe or the arguments; 3 something
that the run needs is missing; 4 a stage failed; 5 a result did not meet the recipe's `expect`; 6 another run is using
the same stage; 75 stopped by a signal (run the same command to continue)
"""


class Parser(argparse.ArgumentParser):
    """A parser that raises RecipeError, so that wrong usage ends like every other mistake of the user."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.color = False  # Python 3.14 colours its help with control characters, which the output would escape

    def error(self, message: str) -> NoReturn:
        """Raise RecipeError with the usage."""
        raise RecipeError(f"{message}\n{self.format_usage().rstrip()}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the parsed arguments, with the verb as `verb`: the first word, or `run` if that is not in `VERBS`.

    Raises:
        RecipeError: an argument is wrong, or the first word is neither a file nor a verb but resembles a verb.
    """
    if arguments and arguments[0] in VERBS:
        return _verb_parser(arguments[0]).parse_args(arguments[1:])
    if arguments and arguments[0].isalpha() and not Path(arguments[0]).exists():
        verb = closest(arguments[0], VERBS)
        if verb is not None:
            raise RecipeError(f"there is no recipe or command `{arguments[0]}`; did you mean `{verb}`?")
    return _run_parser().parse_args(arguments)


def _run_parser() -> Parser:
    parser = Parser(
        prog="nanochat-run",
        description="Run a recipe. Stages that are already finished are skipped, and interrupted ones are resumed.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_recipe(parser)
    _add_stage(parser, "--only", help="run only this stage")
    _add_stage(parser, "--from", dest="first", help="run this stage and the stages after it")
    _add_stage(parser, "--until", dest="last", help="stop after this stage")
    parser.add_argument(
        "--force",
        metavar="STAGE",
        action="append",
        default=[],
        choices=(*STAGE_SECTIONS, "all"),
        help="run this stage even if it is finished (repeatable; `all` for every stage)",
    )
    parser.set_defaults(verb="run")
    return parser


def _verb_parser(verb: str) -> Parser:
    parser = Parser(prog=f"nanochat-run {verb}", allow_abbrev=False)
    parser.set_defaults(verb=verb)
    match verb:
        case "plan":
            _add_recipe(parser)
            _add_stage(parser, "--why", help="explain why this stage would run or not")
            parser.add_argument("--json", action="store_true", help="print JSON")
        case "check":
            parser.add_argument("recipes", metavar="RECIPE", type=Path, nargs="+")
            _add_overrides(parser)
        case "show":
            _add_recipe(parser)
            parser.add_argument("--origin", action="store_true", help="show which line or flag set each value")
        case "data":
            _add_data(parser)
        case "fetch":
            _add_recipe(parser)
        case "diff":
            parser.add_argument("recipes", metavar="RECIPE", type=Path, nargs=2)
        case "schema":
            mode = parser.add_mutually_exclusive_group()
            mode.add_argument(
                "--check", action="store_true", help="fail if the JSON Schema or the reference page is out of date"
            )
            mode.add_argument("--write", action="store_true", help="write the JSON Schema and the reference page")
            parser.add_argument(
                "--folder", type=Path, default=Path("schemas"), help="where both files are (default: schemas)"
            )
        case "report":
            parser.add_argument("run", metavar="RUN", help="name of a run, NAME/TIME, or a run folder")
        case "compare":
            parser.add_argument("runs", metavar="RUN", nargs="+", help="name of a run, NAME/TIME, or a run folder")
        case "import":
            _add_import(parser)
        case "export":
            _add_export(parser)
        case "gc":
            parser.add_argument("--dry-run", action="store_true", help="list what would be deleted, and delete nothing")
        case "ui":
            default = f"the first free one from {MLFLOW_PORT}"
            parser.add_argument("--port", type=_port, help=f"port of the web page (default: {default})")
            parser.add_argument("--uri", help="tracking store (default: MLFLOW_TRACKING_URI, else ./mlflow.db)")
        case "serve":
            _add_serve(parser)
        case "verify":
            add_device(parser)
    return parser


def _add_data(parser: Parser) -> None:
    _add_recipe(parser)
    parser.add_argument("source", metavar="SOURCE", nargs="?", help="a source of the recipe (default: all of them)")
    parser.add_argument(
        "--limit",
        metavar="N",
        type=_count,
        default=10_000,
        help="documents or conversations to read of each split (default: 10000; 0 for all)",
    )


def _add_serve(parser: Parser) -> None:
    parser.add_argument("model", metavar="RUN_OR_FOLDER", help="name of a run, or a model folder")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, this machine alone; any other needs NANOCHAT_SERVE_KEY)",
    )
    parser.add_argument("--port", type=_port, help="port to listen on (default: the first free one from 8000)")
    parser.add_argument(
        "--rows",
        type=_positive,
        default=GENERATED_ROWS,
        help=f"answers generated at a time (default: {GENERATED_ROWS})",
    )
    add_device(parser)


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= LAST_PORT:
        raise argparse.ArgumentTypeError(f"`{text}` is not a port: a number from 1 to {LAST_PORT}")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"`{text}` is not a whole number of at least 1")
    return int(text)


def _count(text: str) -> int:
    if (count := int(text)) < 0:
        raise ValueError
    return count


def _add_import(parser: Parser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        type=Path,
        help="a checkpoint of PyTorch nanochat (model_*.pt or its folder), a folder of mlx-lm or transformers of type"
        " nanochat, or a safetensors file",
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="model folder to write")
    parser.add_argument(
        "--tokenizer",
        metavar="FILE",
        type=Path,
        help="tokenizer.pkl, tokenizer.json or tokenizer.model (default: the one next to the model, or in `tokenizer/`"
        " of PyTorch nanochat's base folder)",
    )
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="configuration of the model (default: the one next to its weights)"
    )
    parser.add_argument(
        "--architecture",
        choices=tuple(VARIANTS),
        help="architecture of the model, if its configuration does not name one (default: recognised by its weights)",
    )


def _add_export(parser: Parser) -> None:
    parser.add_argument("model", metavar="RUN_OR_FOLDER", help="name of a run, or a model folder")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder to write")
    parser.add_argument(
        "--format", choices=("mlx", "hf", "torch"), required=True, help="mlx-lm, transformers or PyTorch nanochat"
    )
    parser.add_argument(
        "--quantize-bits", type=int, choices=(2, 3, 4, 5, 6, 8), help="round the matrices to this size (mlx only)"
    )
    parser.add_argument(
        "--group-size", type=int, choices=(32, 64, 128), default=64, help="numbers that share a scale (default: 64)"
    )


def _add_recipe(parser: Parser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", type=Path, help="a recipe file")
    _add_overrides(parser)


def _add_stage(parser: Parser, flag: str, *, help: str, dest: str | None = None) -> None:  # noqa: A002
    parser.add_argument(flag, dest=dest or flag.lstrip("-"), metavar="STAGE", choices=STAGE_SECTIONS, help=help)


def add_device(parser: Parser) -> None:
    """Add the option `--device` for the commands that compute without a recipe."""
    parser.add_argument(
        "--device", choices=("auto", "cpu", "gpu"), default="auto", help="where to compute (default: a GPU if any)"
    )


def _add_overrides(parser: Parser) -> None:
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="set a value of the recipe by its dotted path, such as pretrain.horizon.steps=100 (repeatable)",
    )
    parser.add_argument(
        "--offline", action="store_true", help="do not use the network (sets run.offline), as with HF_HUB_OFFLINE=1"
    )
