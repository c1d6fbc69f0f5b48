"""One line of `nanochat-run doctor`: a property of this machine, and what to do if something is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "hint", "warning", "failure"]


@dataclass(frozen=True)
class Finding:
    """A property of this machine or of the installation, and the remedy if something is wrong with it."""

    name: str
    text: str
    level: Level = "ok"
    """`hint`: something would be faster. `warning`: some recipes cannot run. `failure`: none can."""
    remedy: str = ""
