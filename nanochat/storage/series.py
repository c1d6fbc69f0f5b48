"""Files of metrics by step, which grow by a line at a time while a stage runs, and the names of some metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

TRAIN_LOSS, TRAIN_REWARD, VAL_LOSS, VAL_BPB = "train/loss", "train/reward", "val/loss", "val/bpb"
"""Names of metrics that stages log and that reports, `watch` and sweeps read."""
SUITE_PREFIX = "eval/"
"""Begins the names of the scores of suites that run during training."""


class Series:
    """An append-only file of lines `{"step": int, "metrics": {name: float}}`, with the `time` if it matters.

    Every line is written at once, so a killed process loses at most the line that it was writing.
    """

    def __init__(self, path: Path):
        self.path = path

    def append(self, step: int, metrics: Mapping[str, float], *, time: float | None = None) -> None:
        """Append one line. All values must be finite, because JSON has no NaN. `time` is in seconds since the epoch."""
        assert all(math.isfinite(value) for value in metrics.values()), f"step {step}: not finite: {metrics}"
        timed = {} if time is None else {"time": time}
        line = json.dumps({"step": step, **timed, "metrics": dict(metrics)})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def at(self, step: int) -> dict[str, float]:
        """Return all values of a step by name; empty if there is no such step."""
        values: dict[str, float] = {}
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else ():
            content = json.loads(line)
            if content["step"] == step:
                values |= content["metrics"]
        return values

    def values(self, name: str) -> list[float]:
        """Return all values of a metric, in order."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else ()
        metrics = (json.loads(line)["metrics"] for line in lines)
        return [values[name] for values in metrics if name in values]
