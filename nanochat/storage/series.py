"""A file of values by step, one JSON object a line, that can be cut back to what it was at a checkpoint."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from nanochat.storage import files


class Series:
    """An append-only file of `{"step": int, "metrics": {name: float}}` lines.

    Nothing is buffered beyond a line, so that a reader and a killed process lose no more than the line being written.
    """

    def __init__(self, path: Path):
        self.path = path

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line.

        JSON has no NaN: the caller leaves out what is not finite (an assert says so).
        """
        assert all(math.isfinite(value) for value in metrics.values()), f"step {step}: not finite: {metrics}"
        line = json.dumps({"step": step, "metrics": dict(metrics)})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def sync(self) -> int:
        """Flush the file to disk and return its size in bytes; 0 where nothing was written."""
        if not self.path.exists():
            return 0
        files.sync(self.path)
        return self.path.stat().st_size

    def truncate(self, size: int) -> None:
        """Cut the file back to `size` bytes; a shorter file stays as it is."""
        if self.path.exists() and self.path.stat().st_size > size:
            os.truncate(self.path, size)
