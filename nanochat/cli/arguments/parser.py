"""The parser of both commands, and the arguments that several commands have.

It imports little, since shell completion builds these parsers at every press of the Tab key.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from nanochat.errors import RecipeError


class Parser(argparse.ArgumentParser):
    """A parser that raises RecipeError, so that wrong usage ends like every other mistake of the user."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)
        self.color = False  # Python 3.14 colours its help with control characters, which the output would escape

    def flags(self) -> dict[str, argparse.Action]:
        """Return the options by the words that set them."""
        return self._option_string_actions

    def positionals(self) -> list[argparse.Action]:
        """Return the arguments that are not options."""
        return self._get_positional_actions()

    def error(self, message: str) -> NoReturn:
        """Raise RecipeError with the usage, and with the option that changes a recipe if an argument is unknown."""
        if message.startswith("unrecognized arguments") and "--set" in self.flags():
            message += "; change the recipe with `--set KEY=VALUE`, for example `--set pretrain.horizon.steps=100`"
        raise RecipeError(f"{message}\n{self.format_usage().rstrip()}")


@dataclass(frozen=True)
class Verb:
    """A command of `nanochat-run`, such as `plan`."""

    name: str
    summary: str
    """Its purpose, for the list of commands."""
    function: str
    """The module in `nanochat.cli.verbs` and the function in it, with a dot between them."""
    examples: tuple[str, ...]
    """Command lines after `nanochat-run`, for its help text."""
    add_arguments: Callable[[Parser], None] = lambda parser: None

    def parser(self) -> Parser:
        """Return the parser of the words after the name of the command."""
        lines = [f"  nanochat-run {example}" for example in self.examples]
        parser = Parser(
            prog=f"nanochat-run {self.name}",
            description=f"{self.summary[:1].upper()}{self.summary[1:]}.",
            epilog="\n".join([f"example{'s' * (len(lines) > 1)}:", *lines]),
        )
        parser.set_defaults(verb=self.name)
        self.add_arguments(parser)
        return parser


class PrintVersion(argparse.Action):
    """Prints the version and the commit of the code, and ends the command."""

    def __call__(self, *_: object) -> NoReturn:
        """Look up the commit only now, because that takes a while."""
        from nanochat.runner.store.provenance import describe_version

        print(describe_version())
        raise SystemExit(0)


def add_version(parser: Parser) -> None:
    """Add the option `--version`."""
    parser.add_argument("--version", action=PrintVersion, nargs=0, help="show the version and, where known, the commit")


def add_recipe(parser: Parser) -> None:
    """Add a recipe, and the options that change its values."""
    parser.add_argument(
        "recipe", metavar="RECIPE", type=Path, help="a recipe file, or the name of a recipe (`nanochat-run recipes`)"
    )
    add_overrides(parser)


def add_overrides(parser: Parser) -> None:
    """Add the options that change values of recipes."""
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


def add_stage(parser: Parser, flag: str, *, help: str, dest: str | None = None) -> None:  # noqa: A002
    """Add an option whose value is the name of a stage."""
    parser.add_argument(flag, dest=dest or flag.lstrip("-"), metavar="STAGE", type=_stage_name, help=help)


def add_run(parser: Parser, *, nargs: str | None = None) -> None:
    """Add a run as `run`; with `nargs`, several as `runs`."""
    name = "run" if nargs is None else "runs"
    parser.add_argument(name, metavar="RUN", nargs=nargs, help="name of a run or a sweep, NAME/TIME, or a run folder")


def add_json(parser: Parser) -> None:
    """Add the option `--json`."""
    parser.add_argument("--json", action="store_true", help="print one JSON document (see schemas/json_output.md)")


def add_model(parser: Parser) -> None:
    """Add the name of a run or the folder of a model."""
    parser.add_argument("model", metavar="RUN_OR_FOLDER", help="name of a run, or a model folder")


def add_device(parser: Parser) -> None:
    """Add the option `--device` for the commands that compute without a recipe."""
    parser.add_argument(
        "--device", choices=("auto", "cpu", "gpu"), default="auto", help="where to compute (default: a GPU if any)"
    )


def _stage_name(text: str) -> str:
    """Return the name of a stage."""
    from nanochat.recipe.schema.recipe import STAGE_SECTIONS
    from nanochat.recipe.schema.suggestions import did_you_mean

    if text not in STAGE_SECTIONS:
        raise argparse.ArgumentTypeError(f"`{text}` is not a stage; {did_you_mean(text, STAGE_SECTIONS)}")
    return text


def stage_or_all(text: str) -> str:
    """Return the name of a stage, or `all`."""
    return text if text == "all" else _stage_name(text)


def port(text: str) -> int:
    """Return the number of a port."""
    from nanochat.recipe.check.tracking_values import LAST_PORT

    if not text.isdecimal() or not 1 <= int(text) <= LAST_PORT:
        raise argparse.ArgumentTypeError(f"`{text}` is not a port: a number from 1 to {LAST_PORT}")
    return int(text)


def positive(text: str) -> int:
    """Return a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"`{text}` is not a whole number of at least 1")
    return int(text)


def count(text: str) -> int:
    """Return a whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"`{text}` is not a whole number of at least 0")
    return int(text)


def temperature(text: str) -> float:
    """Return a sampling temperature."""
    if not 0 <= (value := _number(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"`{text}` is not a number of at least 0")
    return value


def share(text: str) -> float:
    """Return a share of 1 that is not 0."""
    if not 0 < (value := _number(text)) <= 1:
        raise argparse.ArgumentTypeError(f"`{text}` is not a number above 0 and at most 1")
    return value


def _number(text: str) -> float:
    """Return the number in a text, or NaN if it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
