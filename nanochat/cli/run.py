"""`nanochat-run`: runs a recipe, or one of the other commands listed in `arguments.commands`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from nanochat.errors import InterruptedRun

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, as `nanochat.errors` defines it.

    Without `arguments` it is the command of this process, which then ends.
    """
    return start(_dispatch, arguments)


def start(act: Callable[[Sequence[str]], None], arguments: Sequence[str] | None) -> int:
    """Call `act` with the arguments of a command, and return its exit code."""
    try:  # Ctrl-C during this import would be a traceback; after it, `run_command` handles it
        from nanochat.cli.exit_codes import run_command
    except KeyboardInterrupt:
        return InterruptedRun.exit_code
    given = sys.argv[1:] if arguments is None else arguments
    return run_command(lambda: act(given), is_last=arguments is None)


def _dispatch(given: Sequence[str]) -> None:
    """Call the function of the verb. Only its module is imported, so that light verbs stay light."""
    import importlib

    from nanochat import runtime
    from nanochat.cli.arguments.commands import VERBS, parse

    runtime.disable_telemetry()
    options = parse(given)
    module, _, function = VERBS[options.verb].function.partition(".")
    options.arguments = given
    getattr(importlib.import_module(f"nanochat.cli.verbs.{module}"), function)(options)


if __name__ == "__main__":
    sys.exit(main())
