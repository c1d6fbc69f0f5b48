"""Run a sweep: plan and check all cells, run those that are not finished, and show their results side by side.

A cell is an ordinary run, which the pipeline runs. It fails alone: the others still run, and the command ends with the
exit code of the worst. Cells run in threads of this process, because their stages are processes of their own.
"""

from __future__ import annotations

import queue
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from nanochat.errors import InterruptedRun, NanochatError, RecipeError
from nanochat.plan.describe import several
from nanochat.recipe.load import LoadedRecipe
from nanochat.runner.display import Display
from nanochat.runner.pipeline import run_loaded
from nanochat.runner.preflight.hub_pins import pin_sources
from nanochat.runner.process.child import COMMAND
from nanochat.runner.process.interrupts import Interrupts
from nanochat.runner.stage_loop import RunRequest
from nanochat.runner.sweeps.checks import check_sweep_run
from nanochat.runner.sweeps.display import SweepDisplay
from nanochat.runner.sweeps.outcome import CellFailure, raise_worst
from nanochat.runner.sweeps.plan_report import sweep_report_text
from nanochat.runner.sweeps.prepared import PreparedCell, prepare_sweep
from nanochat.runner.sweeps.remote import run_on_host
from nanochat.runner.sweeps.report import write_sweep_report
from nanochat.runner.sweeps.results import read_results
from nanochat.runner.sweeps.slots import Slot, choose_slots
from nanochat.runner.sweeps.state import SweepState, open_sweep, reference
from nanochat.runner.sweeps.table import result_table, result_text
from nanochat.runner.upload.upload import tracking_of
from nanochat.storage.files import write_text
from nanochat.storage.layout import SweepFolder

_POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """What the user asked for on the command line."""

    base: Path
    folder: Path
    """The working directory."""
    command: str
    """The command that repeats or continues the sweep."""
    are_many_fine: bool = False
    """Whether the sweep may have more cells than `MAX_CELLS`."""
    stops_at_failure: bool = False
    child_command: Sequence[str] = COMMAND


def run_sweep(loaded: LoadedRecipe, request: SweepRequest, display: Display) -> SweepFolder:
    """Run the cells of a sweep that are not finished, write its report, and return its folder.

    The class of a NanochatError says how the worst cell ended. A signal ends the sweep with InterruptedRun.
    """
    if pinned := pin_sources(loaded, request.base):
        display.log_line(pinned)
    sweep = prepare_sweep(loaded, request.base, are_many_fine=request.are_many_fine)
    tracking = tracking_of(loaded.recipe.tracking, request.folder)
    check_sweep_run(sweep, request.base, tracking)
    slots = choose_slots(sweep)
    plan = sweep_report_text(sweep)
    if sweep.stages_to_run():
        display.log_line(plan)
    folder, state = open_sweep(sweep, base=request.base, tracking=tracking)
    write_text(folder.plan_text, plan)
    runner = _Runner(request, folder, state, SweepDisplay(display, len(sweep.cells)))
    try:
        failures = runner.run(sweep.cells, slots)
    except InterruptedRun:
        write_sweep_report(folder, state, request.base, with_plots=False)  # the user is waiting
        raise
    report = write_sweep_report(folder, state, request.base)
    display.log_line(f"{result_text(state, read_results(state, request.base))}\nreport: {report}")
    raise_worst(failures, len(sweep.cells))
    return folder


def run_one_cell(loaded: LoadedRecipe, request: SweepRequest, display: Display, number: int) -> SweepFolder:
    """Run the cell of a sweep with this number, and return the folder of the sweep, which it shares with others.

    Raises RecipeError if there is no such cell, and whatever the cell itself ends with.
    """
    if pinned := pin_sources(loaded, request.base):
        display.log_line(pinned)
    sweep = prepare_sweep(loaded, request.base, are_many_fine=True)
    tracking = tracking_of(loaded.recipe.tracking, request.folder)
    folder, state = open_sweep(sweep, base=request.base, tracking=tracking)
    if not 1 <= number <= len(state.cells):
        raise RecipeError(f"--cell {number}: the sweep has {several(len(state.cells), 'cell')}, counted from 1")
    (cell,) = [x for x in sweep.cells if x.cell.number == number]
    failures = _Runner(request, folder, state, SweepDisplay(display, len(state.cells))).run([cell], [Slot()])
    write_sweep_report(folder, state, request.base)
    if failures:
        raise failures[0].error
    display.log_line(result_table(state, [x for x in read_results(state, request.base) if x.entry.number == number]))
    return folder


class _Runner:
    """Runs cells, each in a slot, and collects how they failed."""

    def __init__(self, request: SweepRequest, folder: SweepFolder, state: SweepState, display: SweepDisplay) -> None:
        self._request, self._state, self._display = request, state, display
        self._reference = reference(folder)
        self._failures: list[CellFailure] = []
        self._stops: dict[int, str] = {}
        """Where a signal stopped cells, by number."""
        self._has_given_up = False
        """Whether a cell failed and `--fail-fast` stops the others."""

    def run(self, cells: Iterable[PreparedCell], slots: Sequence[Slot]) -> list[CellFailure]:
        """Run cells in order, as many at a time as there are slots, and return the failures.

        Raises InterruptedRun after a signal to stop, once all running cells have saved their state.
        """
        free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        for slot in slots:
            free.put(slot)
        with (
            Interrupts(self._display.clear_progress) as interrupts,
            ThreadPoolExecutor(len(slots), thread_name_prefix="cell") as pool,
        ):
            pending = {pool.submit(self._run_in_slot, cell, free, interrupts) for cell in cells}
            _wait(pending, interrupts)
        if self._stops and not self._has_given_up:
            raise InterruptedRun(f"{self._stops[min(self._stops)]}; continue with: {self._request.command}")
        return self._failures

    def _run_in_slot(self, cell: PreparedCell, free: queue.SimpleQueue[Slot], interrupts: Interrupts) -> None:
        """Run a cell in a free slot, and note how it failed or where a signal stopped it."""
        slot = free.get()
        number = cell.cell.number
        try:
            if interrupts.count:
                self._stops[number] = f"stopped before cell {number}"
            else:
                self._run_cell(cell, slot, interrupts)
        except InterruptedRun as stop:
            self._stops[number] = f"cell {number}: {str(stop).partition('; continue with:')[0]}"
        except NanochatError as error:
            self._failures.append(CellFailure(number, error))
            self._display.log_of_cell(number, f"FAILED: {error}")
            if self._request.stops_at_failure:
                self._has_given_up = True
                interrupts.count += 1
        finally:
            free.put(slot)

    def _run_cell(self, cell: PreparedCell, slot: Slot, interrupts: Interrupts) -> None:
        request, loaded = self._request, cell.cell.loaded
        display = self._display.cell(cell.cell.number)
        if slot.host:
            flags = [word for override in self._state.overrides for word in ("--set", override)]
            command = ["sweep", str(loaded.path.absolute()), *flags, "--cell", str(cell.cell.number)]
            place = {"folder": request.folder, "base": request.base}
            run_on_host(slot.host, command, **place, display=display, interrupts=interrupts)
            return
        run = RunRequest(
            recipe=loaded.path,
            base=request.base,
            folder=request.folder,
            command=loaded.command(),
            overrides=loaded.overrides,
            last=self._state.section.until,
            sweep=self._reference,
            environment=slot.environment,
            child_command=request.child_command,
        )
        run_loaded(loaded, run, display, interrupts)


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
