"""How the cells of a sweep ended: which failed, and which of their errors the whole command ends with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nanochat.errors import NanochatError, worst
from nanochat.plurals import several


@dataclass(frozen=True)
class CellFailure:
    """A cell that did not succeed, and why."""

    number: int
    error: NanochatError

    def __str__(self) -> str:
        return f"cell {self.number}: {str(self.error).splitlines()[0]}"


def raise_worst(failures: Iterable[CellFailure], count: int) -> None:
    """Raise an error of the worst kind among the failures of `count` cells, with a line for each; none if there are
    none."""
    failed = sorted(failures, key=lambda failure: failure.number)
    kind = worst(failure.error.exit_code for failure in failed)
    if kind is not None:
        heading = f"{len(failed)} of {several(count, 'cell')} did not succeed"
        raise kind("\n".join([f"{heading}; the results of the others are kept:", *(f"  {x}" for x in failed)]))
    assert not failed, "every error of a cell is of one of these kinds"
