"""The request for a run, and its state before the first stage: the plan, the cache and the selected stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from nanochat.errors import NanochatError
from nanochat.plan.plan import StagePlan
from nanochat.runner.display import Display
from nanochat.runner.preflight.prepare import Prepared
from nanochat.runner.process.child import COMMAND
from nanochat.runner.process.interrupts import Interrupts
from nanochat.runner.store.stage_cache import CacheLookup


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """The requests of the user on the command line."""

    base: Path
    folder: Path
    """The working directory. A SQLite tracking store is created here by default."""
    command: str
    """The command that repeats or resumes the run."""
    only: str | None = None
    first: str | None = None
    last: str | None = None
    force: tuple[str, ...] = ()
    sweep: str = ""
    """The sweep that the run is a cell of, as NAME/TIME. A cell waits for stages that other commands compute."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of the environment of the stages, besides those of this process."""
    memory_bytes: int | None = None
    """How much memory each stage may use, instead of what the recipe says or the device has."""
    failed_stages: dict[Path, NanochatError] = field(default_factory=dict)
    """The folders of stages that failed, and why. The cells of a sweep share this, so that none repeats a failure."""
    child_command: Sequence[str] = COMMAND

    @property
    def is_cell(self) -> bool:
        """Whether the run is a cell of a sweep, which shows its own plan and results."""
        return bool(self.sweep)


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """A request with its prepared recipe and what the cache holds for each stage."""

    request: RunRequest
    prepared: Prepared
    selected: frozenset[str]
    forced: frozenset[str]
    lookups: Sequence[CacheLookup]
    display: Display
    interrupts: Interrupts | None = None
    """Counts the signals to stop, if the caller handles them."""
    data_notes: set[str] = field(default_factory=set)
    """The notes on data that stages have shown. Later stages that read the same data do not repeat them."""

    @contextmanager
    def handle_signals(self) -> Iterator[Interrupts]:
        """Count the signals to stop while the block runs, unless the caller does so."""
        if self.interrupts is not None:
            yield self.interrupts
            return
        with Interrupts(self.display.clear_progress) as interrupts:
            yield interrupts

    @property
    def to_run(self) -> list[StagePlan]:
        return [x.stage for x in self.lookups if x.stage.name in self.selected and x.action != "cached"]
