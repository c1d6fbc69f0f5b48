"""Which of the files that a source has are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TypeVar

AnyPath = TypeVar("AnyPath", bound=PurePath)


@dataclass(frozen=True)
class FileSelection:
    """The first `max_files` files, and beside them the validation shard, wherever it stands."""

    max_files: int | None = None
    validation_shard: str | None = None

    def pick(self, files: Sequence[AnyPath]) -> list[AnyPath]:
        """Return the files to use, in the order given."""
        others = [file for file in files if file.name != self.validation_shard]
        kept = set(others[: self.max_files])
        return [file for file in files if file in kept or file.name == self.validation_shard]
