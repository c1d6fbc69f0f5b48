"""Collects the mistakes that are found while a plan is derived, and notes for the reader."""

from __future__ import annotations

from dataclasses import dataclass, field

from nanochat.recipe.check.validation import FieldProblem
from nanochat.recipe.merge.tree import KeyPath


@dataclass
class PlanIssues:
    """Collects mistakes, so that they are reported together, and sentences that the plan shows."""

    problems: list[FieldProblem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def refuse(self, path: KeyPath, code: str, message: str, *, advice: str = "") -> None:
        """Add a mistake."""
        self.problems.append(FieldProblem(path, code, message, advice))

    def note(self, text: str | None) -> None:
        """Add a sentence to the plan, unless `text` is None."""
        if text:
            self.notes.append(text)

    def check_whole_rows(self, path: KeyPath, tokens_per_step: int, sequence_len: int) -> None:
        """Refuse a batch that is not a whole number of rows, and suggest the nearest sizes that are."""
        if tokens_per_step % sequence_len == 0:
            return
        below = tokens_per_step // sequence_len * sequence_len
        nearest = [str(value) for value in (below, below + sequence_len) if value]
        message = f"{tokens_per_step:,} tokens per step are not a whole number of rows of {sequence_len:,} tokens"
        self.refuse(path, "uneven-batch", message, advice=f"nearest that fit: {' and '.join(nearest)}")
