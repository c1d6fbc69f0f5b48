"""`nanochat-chat`: talk to a model (`chat_loop`)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from nanochat.cli.run import start

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, as `nanochat.cli.run.main` does."""
    return start(_chat, arguments)


def _chat(arguments: Sequence[str]) -> None:
    from nanochat.cli.chat_loop import chat

    chat(arguments)


if __name__ == "__main__":
    sys.exit(main())
