"""The commands that need neither a recipe nor a run: completion, doctor, ui, verify and schema."""

from __future__ import annotations

import argparse
from pathlib import Path

from nanochat.cli.arguments.parser import Parser, Verb, add_device, port


def _ui(parser: Parser) -> None:
    from nanochat.recipe.check.tracking_values import MLFLOW_PORT

    default = f"the first free one from {MLFLOW_PORT}"
    parser.add_argument("--port", type=port, help=f"port of the web page (default: {default})")
    parser.add_argument("--uri", help="tracking store (default: MLFLOW_TRACKING_URI, else ./mlflow.db)")


def _schema(parser: Parser) -> None:
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--check", action="store_true", help="fail if the JSON Schema or the reference page is out of date"
    )
    mode.add_argument("--write", action="store_true", help="write the JSON Schema and the reference page")
    parser.add_argument("--folder", type=Path, default=Path("schemas"), help="where both files are (default: schemas)")


def _completion(parser: Parser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "fish"), help="bash, zsh or fish")
    parser.add_argument(
        "words",
        metavar="WORD",
        nargs=argparse.REMAINDER,
        help="a command line: print possible completions of its last word (the script calls this)",
    )


MACHINE = (
    Verb(
        "completion",
        "print a script by which a shell completes commands, recipes, runs and keys of --set",
        "completion_commands.completion",
        ("completion bash >> ~/.bashrc", "completion zsh > ~/.zfunc/_nanochat"),
        _completion,
    ),
    Verb(
        "doctor",
        "examine this machine and the installation, for bug reports and for speed",
        "doctor_commands.doctor",
        ("doctor",),
    ),
    Verb("ui", "browse results in MLflow", "machine_commands.ui", ("ui", "ui --uri sqlite:///mlflow.db"), _ui),
    Verb("verify", "check this machine's arithmetic in seven ways", "machine_commands.verify", ("verify",), add_device),
    Verb(
        "schema",
        "print the JSON Schema of recipes, for editors",
        "recipe_commands.schema",
        ("schema > recipe.schema.json",),
        _schema,
    ),
)
