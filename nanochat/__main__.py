"""`python -m nanochat` is `nanochat-run`."""

from __future__ import annotations

import sys

from nanochat.cli.run import main

if __name__ == "__main__":
    sys.exit(main())
