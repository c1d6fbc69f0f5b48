"""A line of `nanochat-run doctor`: a thing of this machine, its state, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "hint", "warning", "failure"]


@dataclass(frozen=True)
class Diagnosis:
    """A thing of this machine, and what to do about it if something is not as it should be."""

    name: str
    text: str
    level: Level = "ok"
    """`hint`: something would be faster. `warning`: some recipes cannot run. `failure`: none can."""
    remedy: str = ""
