"""`nanochat-run`: runs a recipe, or one of the other verbs listed in `arguments`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from nanochat.errors import InterruptedRun

if TYPE_CHECKING:
    from collections.abc import Sequence

_MODULES = {
    **dict.fromkeys(("run", "plan", "check", "show", "diff", "schema"), "recipe_commands"),
    **dict.fromkeys(("data", "fetch"), "data_commands"),
    **dict.fromkeys(("ls", "report", "compare", "gc"), "result_commands"),
    "import": "model_commands",
    "export": "export_commands",
    **dict.fromkeys(("ui", "verify"), "program_commands"),
    "serve": "serve_commands",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, as `nanochat.errors` defines it.

    Without `arguments` it is the command of this process, which then ends.
    """
    try:  # Ctrl-C during this import would be a traceback; after it, `run_command` handles it
        from nanochat.cli.exit_codes import run_command
    except KeyboardInterrupt:
        return InterruptedRun.exit_code
    given = sys.argv[1:] if arguments is None else arguments
    return run_command(lambda: _dispatch(given), is_last=arguments is None)


def _dispatch(given: Sequence[str]) -> None:
    """Call the function of the verb. Only its module is imported, so that light verbs stay light."""
    import importlib

    from nanochat import runtime
    from nanochat.cli.arguments import parse

    # The library of the hub would ask the hub which agents exist, to report the one that runs this program.
    runtime.set_environment("HF_HUB_DISABLE_TELEMETRY", "1")
    options = parse(given)
    module = importlib.import_module(f"nanochat.cli.verbs.{_MODULES[options.verb]}")
    options.arguments = given
    name = f"{options.verb}_model" if options.verb in ("import", "export") else options.verb
    getattr(module, name)(options)


if __name__ == "__main__":
    sys.exit(main())
