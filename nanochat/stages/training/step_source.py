"""The interface between a training stage and its steps: where rows come from, and what is measured besides the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from nanochat.data.loaders.batches import StateDict
from nanochat.train.step import Rows


class StepSource(Protocol):
    """Where the rows of each step come from, such as a `BatchLoader`."""

    def next(self) -> Rows:
        """Return the rows of the next step, or raise StopIteration after the last one."""
        ...

    def state_dict(self) -> StateDict:
        """Return the state after the step last returned."""
        ...

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue with the step that followed when `state_dict` returned `state`."""
        ...

    def close(self) -> None:
        """Release what the source holds."""
        ...


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Measurements of a step that a stage logs in addition to those of every training stage."""

    tokens: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    text: str = ""
    """For the progress display."""
