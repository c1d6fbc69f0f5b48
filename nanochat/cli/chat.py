"""`nanochat-chat`: talk to a model (`conversation`)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from nanochat.errors import InterruptedRun

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, as `nanochat.errors` defines it.

    Without `arguments` it is the command of this process, which then ends.
    """
    try:  # Ctrl-C during this import would be a traceback; after it, `run_command` handles it
        from nanochat.cli.exit_codes import run_command
    except KeyboardInterrupt:
        return InterruptedRun.exit_code
    given = sys.argv[1:] if arguments is None else arguments
    return run_command(lambda: _chat(given), is_last=arguments is None)


def _chat(arguments: Sequence[str]) -> None:
    from nanochat.cli.conversation import chat

    chat(arguments)


if __name__ == "__main__":
    sys.exit(main())
