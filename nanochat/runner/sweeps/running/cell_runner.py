"""Runs cells, each in a thread of this process, as many at a time as there are places for them.

A cell is an ordinary run, which the pipeline runs; its stages are processes of their own. A cell that
fails stops no other one, unless `--fail-fast` was given. `raise_worst` reports all failures at the end.
"""

from __future__ import annotations

import queue
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from nanochat.errors import InterruptedRun, NanochatError, worst
from nanochat.plurals import several
from nanochat.recipe.merge.tree import Plain
from nanochat.runner.pipeline import run_recipe
from nanochat.runner.preflight.run_context import RunRequest
from nanochat.runner.process.child import COMMAND
from nanochat.runner.process.interrupts import Interrupts
from nanochat.runner.store.sweep_state import SweepState
from nanochat.runner.sweeps.preparing.open_sweep import cell_entry
from nanochat.runner.sweeps.preparing.prepare_sweep import PreparedCell
from nanochat.runner.sweeps.results.cell_results import read_result
from nanochat.runner.sweeps.running.pruning import Losses, losses_of, watching
from nanochat.runner.sweeps.running.remote import run_on_host
from nanochat.runner.sweeps.running.slots import Slot
from nanochat.runner.sweeps.running.sweep_display import SweepDisplay
from nanochat.storage.layout import SweepFolder

_POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """The requests of the user on the command line."""

    base: Path
    folder: Path
    """The working directory."""
    command: str
    """The command that repeats or continues the sweep."""
    are_many_fine: bool = False
    """Whether the sweep may have more cells than `MAX_CELLS`."""
    stops_at_failure: bool = False
    child_command: Sequence[str] = COMMAND


class CellRunner:
    """Runs cells, each in a slot, and collects which of them failed or were pruned."""

    def __init__(self, request: SweepRequest, folder: SweepFolder, state: SweepState, display: SweepDisplay) -> None:
        self._request, self._state, self._display = request, state, display
        self._reference = folder.reference
        self.failures: list[CellFailure] = []
        """The cells that failed, and why."""
        self.pruned: set[int] = set()
        """The numbers of the cells that were stopped because they are worse than earlier trials, or not started."""
        self._failed_stages: dict[Path, NanochatError] = {}
        self._pruned_values: list[Mapping[str, Plain]] = []
        self._stops: dict[int, str] = {}
        """Where a signal stopped cells, by number."""
        self._has_given_up = False
        """Whether a cell failed and `--fail-fast` stops the others."""

    def run(
        self,
        cells: Iterable[PreparedCell],
        slots: Sequence[Slot],
        interrupts: Interrupts,
        *,
        earlier: Sequence[Losses] | None = None,
    ) -> None:
        """Run cells in order, as many at a time as there are slots. Signals to stop end it early.

        Those that are worse than the `earlier` trials are stopped, unless that is None.
        """
        free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        for slot in slots:
            free.put(slot)
        with ThreadPoolExecutor(len(slots), thread_name_prefix="cell") as pool:
            pending = {pool.submit(self._run_in_slot, cell, free, interrupts, earlier) for cell in cells}
            _wait(pending, interrupts)

    def stop_before(self, number: int) -> None:
        """Note that a signal kept a cell from starting."""
        self._stops[number] = f"stopped before cell {number}"

    def raise_if_stopped(self, progress: str) -> None:
        """Raise InterruptedRun if a signal stopped a cell or kept one from starting. `progress`: how far all are."""
        if self._stops and not self._has_given_up:
            raise InterruptedRun(
                f"{self._stops[min(self._stops)]} (cells: {progress}); continue with: {self._request.command}"
            )

    def _run_in_slot(
        self,
        cell: PreparedCell,
        free: queue.SimpleQueue[Slot],
        interrupts: Interrupts,
        earlier: Sequence[Losses] | None,
    ) -> None:
        """Run a cell in a free slot, and note how it failed or where a signal stopped it."""
        slot = free.get()
        number = cell.cell.number
        try:
            if interrupts.count:
                self.stop_before(number)
            elif earlier is None:
                self._run_cell(cell, slot, interrupts)
            elif cell.cell.values in self._pruned_values:
                self._prune(cell, "not started, because another seed of it was pruned")
            else:
                self._run_trial(cell, slot, interrupts, earlier)
        except InterruptedRun as stop:
            self._stops[number] = f"cell {number}: {str(stop).partition('; continue with:')[0]}"
        except NanochatError as error:
            self.failures.append(CellFailure(number, error))
            self._display.log_of_cell(number, f"FAILED: {error}")
            if self._request.stops_at_failure:
                self._has_given_up = True
                interrupts.count += 1
        finally:
            free.put(slot)

    def _run_trial(self, cell: PreparedCell, slot: Slot, interrupts: Interrupts, earlier: Sequence[Losses]) -> None:
        """Run a cell, and stop it if it is worse than the earlier trials."""
        entry, base = cell_entry(cell), self._request.base
        with watching(interrupts, lambda: losses_of(read_result(entry, base), base), earlier) as watch:
            try:
                self._run_cell(cell, slot, watch.interrupts)
            except InterruptedRun:
                if not watch.was_stopped:
                    raise
                self._prune(cell, "its loss is above the median of the trials before it; the run is kept")

    def _prune(self, cell: PreparedCell, reason: str) -> None:
        self.pruned.add(cell.cell.number)
        self._pruned_values.append(cell.cell.values)
        self._display.log_of_cell(cell.cell.number, f"pruned: {reason}")

    def _run_cell(self, cell: PreparedCell, slot: Slot, interrupts: Interrupts) -> None:
        request, loaded = self._request, cell.cell.loaded
        display = self._display.cell(cell.cell.number)
        if slot.host:
            flags = [word for override in self._state.overrides for word in ("--set", override)]
            command = ["sweep", str(loaded.path.absolute()), *flags, "--cell", str(cell.cell.number)]
            place = {"folder": request.folder, "base": request.base}
            run_on_host(slot.host, command, **place, display=display, interrupts=interrupts)
            return
        until = self._state.section.until
        run = RunRequest(
            base=request.base,
            folder=request.folder,
            command=loaded.command() + (f" --until {until}" if until else ""),
            last=until,
            sweep=self._reference,
            environment=slot.environment,
            memory_bytes=slot.memory_bytes,
            failed_stages=self._failed_stages,
            child_command=request.child_command,
        )
        run_recipe(loaded, run, display, interrupts)


def _wait(pending: set[Future[None]], interrupts: Interrupts) -> None:
    """Wait for all cells. If there is a bug in one of the threads, stop the others and raise it."""
    try:
        while pending:
            done, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
    except BaseException:
        interrupts.count += 1
        raise


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
