"""`nanochat-run`: runs a recipe, or one of the other verbs listed in `arguments`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from nanochat import runtime
from nanochat.cli.arguments import parse
from nanochat.cli.exit_codes import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, as `nanochat.errors` defines it."""
    # The library of the hub would ask the hub which agents exist, to report the one that runs this program.
    runtime.set_environment("HF_HUB_DISABLE_TELEMETRY", "1")
    given = list(sys.argv[1:] if arguments is None else arguments)
    return run_command(lambda: _dispatch(parse(given), given))


def _dispatch(options: argparse.Namespace, given: Sequence[str]) -> None:
    """Call the function of the verb. Imports are local, so that light verbs stay light."""
    match options.verb:
        case "run":
            from nanochat.cli import recipe_commands

            recipe_commands.run(options, given)
        case "plan" | "check" | "show" | "diff" | "schema":
            from nanochat.cli import recipe_commands

            getattr(recipe_commands, options.verb)(options)
        case "data" | "fetch":
            from nanochat.cli import data_commands

            getattr(data_commands, options.verb)(options)
        case "ls" | "report" | "compare" | "gc":
            from nanochat.cli import result_commands

            getattr(result_commands, options.verb)(options)
        case "import" | "export":
            from nanochat.cli import model_commands

            getattr(model_commands, f"{options.verb}_model")(options)
        case "ui" | "verify":
            from nanochat.cli import program_commands

            getattr(program_commands, options.verb)(options)
        case _:
            raise AssertionError(f"no such verb: {options.verb}")


if __name__ == "__main__":
    sys.exit(main())
