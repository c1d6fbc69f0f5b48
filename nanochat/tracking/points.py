"""Reads metric points from the JSON Lines files that a stage appends to while it runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Point:
    """The value of a metric at a step."""

    step: int
    name: str
    value: float
    time: float | None = None
    """When it was measured, in seconds since the epoch. None if that is not recorded."""


class Tail:
    """Reads what was appended to a file since the last call.

    A resumed stage replaces its file by the copy in the checkpoint and appends to it. The reader notices this
    because its last line is no longer in the same place, and reads the file from the start. The caller must then skip
    the steps that it already has.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._last = b""

    def read(self) -> list[Point]:
        """Return the points of the complete lines appended since the last call, in file order."""
        try:
            with self._path.open("rb") as file:
                start = self._offset - len(self._last)
                file.seek(start)
                block = file.read()
                if not block.startswith(self._last):
                    self._offset, self._last = 0, b""
                    file.seek(0)
                    block = file.read()
        except FileNotFoundError:
            return []
        added = block[len(self._last) :]
        end = added.rfind(b"\n") + 1
        if end == 0:
            return []
        lines = added[:end].splitlines(keepends=True)
        self._offset += end
        self._last = lines[-1]
        return [point for line in lines for point in _points(line)]


def _points(line: bytes) -> Iterator[Point]:
    """Yield the points of a line. A line damaged by a power failure has none."""
    try:
        entry = json.loads(line)
    except ValueError:
        return
    if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
        return
    time = entry.get("time")
    for name, value in entry.get("metrics", {}).items():
        if isinstance(value, (int, float)):
            yield Point(entry["step"], name, float(value), time if isinstance(time, float) else None)


def read_points(path: Path) -> list[Point]:
    """Return all points of a file, in file order."""
    return Tail(path).read()
