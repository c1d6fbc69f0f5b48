"""Which of a source's files are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TypeVar

AnyPath = TypeVar("AnyPath", bound=PurePath)


@dataclass(frozen=True)
class FileSelection:
    """The first `max_files` files, and the validation shard in addition, wherever it comes in the order."""

    max_files: int | None = None
    validation_shard: str | None = None

    def select(self, files: Sequence[AnyPath]) -> list[AnyPath]:
        """Return the files to read, in the order given."""
        others = [file for file in files if file.name != self.validation_shard]
        kept = set(others[: self.max_files])
        return [file for file in files if file in kept or file.name == self.validation_shard]
