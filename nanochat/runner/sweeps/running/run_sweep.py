"""Runs a sweep: plans and checks all cells, runs those that are not finished, and shows their results side by side.

Cells that fail leave the others alone, and the command ends with the exit code of the worst.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nanochat.errors import RecipeError
from nanochat.plan.sweeps import total_cost
from nanochat.plurals import several
from nanochat.recipe.load import LoadedRecipe
from nanochat.runner.display import Display
from nanochat.runner.preflight.hub_pins import pin_sources
from nanochat.runner.preflight.run_checks import find_lack_of_disk, find_problems, refuse
from nanochat.runner.process.interrupts import Interrupts
from nanochat.runner.store.locks import sweep_lock
from nanochat.runner.store.run_state import RunTracking
from nanochat.runner.store.sweep_state import SweepState, read_sweep
from nanochat.runner.sweeps.preparing.open_sweep import open_sweep
from nanochat.runner.sweeps.preparing.prepare_sweep import PreparedCell, PreparedSweep, prepare_sweep
from nanochat.runner.sweeps.preparing.sweep_plan_report import sweep_report_text
from nanochat.runner.sweeps.results.cell_results import count_statuses, read_results, read_sweep_results
from nanochat.runner.sweeps.results.result_table import result_table, result_text
from nanochat.runner.sweeps.results.sweep_report import write_sweep_report
from nanochat.runner.sweeps.running.cell_runner import CellFailure, CellRunner, SweepRequest, raise_worst
from nanochat.runner.sweeps.running.search import check_engine, run_search
from nanochat.runner.sweeps.running.slots import Slot, cell_count, choose_slots
from nanochat.runner.sweeps.running.sweep_display import SweepDisplay
from nanochat.runner.sweeps.running.upload_sweep import uploading_sweep
from nanochat.runner.upload.upload_run import tracking_of
from nanochat.storage.files import write_text
from nanochat.storage.layout import SweepFolder


def run_sweep(loaded: LoadedRecipe, request: SweepRequest, display: Display) -> SweepFolder:
    """Run the cells of a sweep that are not finished, write its report, and return its folder.

    The class of a NanochatError says how the worst cell ended. A signal ends the sweep with InterruptedRun.
    """
    if pinned := pin_sources(loaded, request.base):
        display.log_line(pinned)
    sweep = prepare_sweep(loaded, request.base, are_many_fine=request.are_many_fine)
    if sweep.section.search is not None:
        check_engine()
    tracking = tracking_of(loaded.recipe.tracking, request.folder)
    _check_sweep_run(sweep, request.base, tracking)
    slots = choose_slots(sweep)
    plan = sweep_report_text(sweep)
    if sweep.stages_to_run():
        display.log_line(plan)
    folder, state = open_sweep(sweep, base=request.base, tracking=tracking)
    write_text(folder.plan_text, plan)
    failures = _run(request, sweep, folder, state, sweep.cells, slots, display)
    state = read_sweep(folder) or state
    results = read_sweep_results(folder, state, request.base)
    display.log_line(f"{result_text(results)}\nreport: {folder.report}")
    if results.ranked:
        display.log_line(f"the best recipe: nanochat-run best {state.name}")
    raise_worst(failures, len(state.cells))
    return folder


def run_one_cell(loaded: LoadedRecipe, request: SweepRequest, display: Display, number: int) -> SweepFolder:
    """Run the cell of a sweep with this number, and return the folder of the sweep, which it shares with others.

    Raises RecipeError if there is no such cell, and the error with which the cell ends.
    """
    if pinned := pin_sources(loaded, request.base):
        display.log_line(pinned)
    sweep = prepare_sweep(loaded, request.base, are_many_fine=True)
    if sweep.section.search is not None:
        raise RecipeError("--cell: a search chooses its cells one after another; run it without `--cell`")
    if not 1 <= number <= len(sweep.cells):
        raise RecipeError(f"--cell {number}: the sweep has {several(len(sweep.cells), 'cell')}, counted from 1")
    tracking = tracking_of(loaded.recipe.tracking, request.folder)
    folder, state = open_sweep(sweep, base=request.base, tracking=tracking)
    (cell,) = [x for x in sweep.cells if x.cell.number == number]
    failures = _run(request, sweep, folder, state, [cell], [Slot()], display)
    if failures:
        raise failures[0].error
    results = read_sweep_results(folder, state, request.base)
    display.log_line(result_table(replace(results, cells=tuple(x for x in results.cells if x.entry.number == number))))
    return folder


def _run(
    request: SweepRequest,
    sweep: PreparedSweep,
    folder: SweepFolder,
    state: SweepState,
    cells: Sequence[PreparedCell],
    slots: Sequence[Slot],
    display: Display,
) -> list[CellFailure]:
    """Run cells, write the report and upload it, and return the failures. Raises InterruptedRun after a signal."""
    shown = SweepDisplay(display, cell_count(sweep))
    runner = CellRunner(request, folder, state, shown)
    with (
        sweep_lock(folder, is_shared=sweep.section.search is None),
        Interrupts(shown.clear_progress) as interrupts,
        uploading_sweep(folder, state, request.base, shown, interrupts),
    ):
        if sweep.section.search is None:
            runner.run(cells, slots, interrupts)
        else:
            state = run_search(
                sweep.loaded, runner, folder, state, base=request.base, slots=slots, interrupts=interrupts
            )
        write_sweep_report(folder, state, request.base, with_plots=not interrupts.count)  # the user is waiting
    runner.raise_if_stopped(count_statuses(read_results(state, request.base)))
    return runner.failures


def _check_sweep_run(sweep: PreparedSweep, base: Path, tracking: RunTracking) -> None:
    """Check the needs of the stages that will run. A PreflightError lists the problems of all cells."""
    to_run = sweep.stages_to_run()
    problems = list(sweep.problems)
    for x in sweep.cells:
        own = [shared.stage.name for shared in to_run if shared.cells[0] == x.cell.number]
        stages = [stage for stage in x.prepared.plan.stages if stage.name in own]
        if stages:
            problems += find_problems(x.prepared, stages, tracking=tracking)
    kept = total_cost(to_run).kept_disk_bytes or 0
    refuse([*problems, *find_lack_of_disk(kept, base, whose="sweep")])
