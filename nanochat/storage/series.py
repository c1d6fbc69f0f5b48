"""Files of metrics by step, which are truncated to their size at a checkpoint when training resumes there."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from nanochat.storage import files


class Series:
    """An append-only file of lines `{"step": int, "metrics": {name: float}}`.

    Every line is written at once, so a killed process loses at most the line that it was writing.
    """

    def __init__(self, path: Path):
        self.path = path

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line. All values must be finite, because JSON has no NaN."""
        assert all(math.isfinite(value) for value in metrics.values()), f"step {step}: not finite: {metrics}"
        line = json.dumps({"step": step, "metrics": dict(metrics)})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def sync(self) -> int:
        """Flush the file to disk and return its size in bytes, 0 if it does not exist."""
        if not self.path.exists():
            return 0
        files.sync(self.path)
        return self.path.stat().st_size

    def truncate(self, size: int) -> None:
        """Truncate the file to `size` bytes. A shorter file stays as it is."""
        if self.path.exists() and self.path.stat().st_size > size:
            os.truncate(self.path, size)
