"""How many rows of a source may be unreadable, and how they are reported. Documents and chats have the same limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from nanochat.errors import StageError
from nanochat.plurals import several, without_middle

MIN_ALLOWED = 10
"""This many bad rows are always allowed."""
SHOWN = 3
"""Bad rows that a message shows."""
SHOWN_FILES = 10
"""Bad files that are shown."""
NOT_UTF8 = "not UTF-8"
"""Begins the problem of a line in another encoding."""
_MAX_PROBLEM_CHARS = 500


@dataclass
class RowProblems:
    """The problems that the first pass over the rows of a source found.

    Attributes:
        source: the name of the source, for messages.
        allowed: returns how many rows may be bad; None allows all. It is called only for more than `MIN_ALLOWED`.
        notify: receives the first bad rows as they are met, and the counts at the end of the pass.
        bad: the number of rows that could not be read, those before the pass was resumed included.
        examples: the first of them that this process met, as `file:line: problem`.
        empty: the number of rows without text that this process met.
        held_out: the number of rows that this process met and that belong to another split, as with `split: test`.
        is_counting: whether this is the first pass. The limit applies to every pass.
        shown_once: the files of which one bad line is shown for all of its kind.
        shown_numbers: how many rows and how many files are shown.
    """

    source: str = ""
    allowed: Callable[[], int] | None = None
    notify: Callable[[str], None] = lambda note: None
    bad: int = 0
    examples: list[str] = field(default_factory=list)
    empty: int = 0
    held_out: int = 0
    is_counting: bool = True
    shown_once: set[str] = field(default_factory=set)
    shown_numbers: Counter[str] = field(default_factory=Counter)

    def add_bad(self, problem: str, number: int, what: str = "bad row", *, once: str = "") -> None:
        """Count a bad row, the `number`-th of this pass. Of those with the same `once`, only the first is shown.

        Raises:
            StageError: there are more than allowed.
        """
        if self.is_counting:
            self.bad = number
            counts, most = self.shown_numbers, SHOWN_FILES if what == "file" else SHOWN
            if counts[what] < most and once not in self.shown_once:
                counts[what] += 1
                problem = shortened(problem)
                self.examples.append(problem)
                self.notify(f"{self.source}: a {what} was left out: {problem}")
                if once:
                    self.shown_once.add(once)
        if self.allowed is not None and number > MIN_ALLOWED and number > self.allowed():
            raise StageError(
                f"{self.source}: {several(number, 'bad row')}, but `max_bad_rows` allows {self.allowed():,}; "
                f"correct them, or raise `max_bad_rows` of the source:{shown(self.examples or [problem])}"
            )

    def add_bad_file(self, problem: str, number: int) -> None:
        """Count a file that cannot be read as one bad row. Raises as `add_bad`."""
        self.add_bad(problem, number, "file")

    def add_empty(self, where: Callable[[], str]) -> None:
        """Count a row without text: null, empty or blank. `where` returns its place."""
        if self.is_counting and self.empty == 0:
            self.notify(f"{self.source}: rows without text are left out; the first is {where()}")
        self.empty += self.is_counting

    def add_held_out(self, reason: str, where: Callable[[], str]) -> None:
        """Count a row that belongs to a held-out split, which `reason` says. `where` returns its place."""
        if self.is_counting and self.held_out == 0:
            self.notify(f"{self.source}: rows of held-out splits are left out; the first is {where()} (`{reason}`)")
        self.held_out += self.is_counting

    def end_pass(self) -> None:
        """Report the counts of the first pass, and count no more."""
        if self.is_counting and self.bad > SHOWN:
            self.notify(f"{self.source}: {self.bad:,} bad rows were left out")
        if self.is_counting and self.empty > 1:
            self.notify(f"{self.source}: {self.empty:,} rows without text were left out")
        if self.is_counting and self.held_out > 1:
            self.notify(f"{self.source}: {self.held_out:,} rows of held-out splits were left out")
        self.is_counting = False


def allowed_bad_rows(max_frac: float, rows: int) -> int:
    """Return how many of `rows` rows may be bad."""
    return max(MIN_ALLOWED, int(max_frac * rows))


def shown(problems: Sequence[str]) -> str:
    """Return the first problems, to be written after a colon. Each file that is not UTF-8 has one among them."""
    examples = first_of_each_file(problems)[:SHOWN]
    rest = len(problems) - len(examples)
    return " " + "; ".join(examples) + (f"; and {rest:,} more" if rest > 0 else "")


def first_of_each_file(problems: Iterable[str]) -> list[str]:
    """Return the problems; of the lines of a file that are not UTF-8, only the first."""
    kept: dict[str, str] = {}
    for problem in problems:
        place, is_encoding, _ = problem.partition(f": {NOT_UTF8}")
        kept.setdefault(place.rpartition(":")[0] if is_encoding else problem, problem)
    return list(kept.values())


def shortened(problem: str) -> str:
    """Return a problem, without its middle if it quotes a long value."""
    return without_middle(problem, _MAX_PROBLEM_CHARS)
