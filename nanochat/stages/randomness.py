"""Seeds of everything random in a stage, derived from the recipe's seed and names; there is no global state to save."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for one purpose, such as `derive_seed(42, "pretrain", "init")`.

    Different names give unrelated seeds, so that a stage added or left out changes no other stage's draws.
    """
    text = "/".join(["nanochat", str(seed), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
