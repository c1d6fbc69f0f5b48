"""The verbs of `nanochat-run` that work on the runs of this machine: ls, report, compare and gc."""

from __future__ import annotations

import argparse
import sys
from datetime import datetime
from pathlib import Path

from pydantic import JsonValue

from nanochat import runtime
from nanochat.cli.json_output import print_json
from nanochat.errors import RecipeError
from nanochat.plan.quantities import show_bytes, show_value
from nanochat.plan.stages import evaluation_stages, training_stages
from nanochat.plurals import several
from nanochat.runner.report.comparison import compare_runs, comparison_to_json, render_comparison
from nanochat.runner.report.refresh import refresh_report
from nanochat.runner.report.results import SKIPPED_METRICS, Result
from nanochat.runner.report.run_summary import RunSummary, report_to_json, run_to_json, summarise
from nanochat.runner.store.cleanup import gc as collector
from nanochat.runner.store.run_catalog import Run, describe_damaged_run, find_run, list_damaged_runs, list_runs
from nanochat.runner.store.sweep_state import describe_damaged_sweep
from nanochat.runner.sweeps.results.cell_results import read_results, read_sweep_results
from nanochat.runner.sweeps.results.result_table import headline
from nanochat.runner.sweeps.results.sweep_catalog import list_damaged_sweeps, list_sweeps, look_for_sweep
from nanochat.runner.sweeps.results.sweep_json import summary_to_json, sweep_to_json
from nanochat.runner.sweeps.results.sweep_report import write_sweep_report
from nanochat.storage.files import write_text
from nanochat.storage.layout import runs_folder

_SHOWN_RESULTS = 2
"""Of each stage in a line of `ls`."""


def ls(options: argparse.Namespace) -> None:
    """List the runs and sweeps of this machine, the damaged ones first and the newest last."""
    base = runtime.base_dir()
    runs, sweeps = [summarise(run, base) for run in list_runs(base)], list_sweeps(base)
    damaged = {folder.reference: describe_damaged_run(folder) for folder in list_damaged_runs(base)}
    damaged_sweeps = {folder.reference: describe_damaged_sweep(folder) for folder in list_damaged_sweeps(base)}
    if options.json:
        broken: list[JsonValue] = [{"run": name, "problem": problem} for name, problem in damaged.items()]
        broken += [{"sweep": name, "problem": problem} for name, problem in damaged_sweeps.items()]
        document: dict[str, JsonValue] = {"runs": [run_to_json(summary) for summary in runs], "damaged": broken}
        print_json(document | {"sweeps": [summary_to_json(sweep) for sweep in sweeps]})
        return
    if not runs and not damaged and not sweeps and not damaged_sweeps:
        print(f"no runs under {runs_folder(base)} yet; start one with `nanochat-run RECIPE`")
        return
    rows = [("run", "status", "stages", "results")]
    rows += [(name, "damaged", "-", problem) for name, problem in (*damaged.items(), *damaged_sweeps.items())]
    lines = [(x.run.state.created, (x.run.reference, x.status, _stages(x), _headline(x))) for x in runs]
    lines += [(x.state.created, (x.folder.reference, x.status, "-", headline(x))) for x in sweeps]
    rows += [row for _, row in sorted(lines, key=lambda line: line[0])]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip())
    if sys.stdout.isatty():  # for a reader: programs count lines
        print(f"to remove a run, delete its folder in {runs_folder(base)}; `nanochat-run gc` deletes its results")


def report(options: argparse.Namespace) -> None:
    """Write the report of a run or a sweep from its current records, and print it. As JSON it is printed only."""
    base = runtime.base_dir()
    if (sweep := look_for_sweep(options.run, base)) is not None:
        if options.json:
            print_json(sweep_to_json(read_sweep_results(*sweep, base)))
            return
        print(write_sweep_report(*sweep, base).read_text(encoding="utf-8"), end="")
        return
    run = find_run(options.run, base)
    if options.json:
        print_json(report_to_json(summarise(run, base)))
        return
    shown = refresh_report(run, base)
    print(shown.text, end="")
    for remark in shown.remarks:
        print(f"\n({remark})")


def compare(options: argparse.Namespace) -> None:
    """Print the results of several runs, and the differences of their recipes, or write a page of them."""
    base = runtime.base_dir()
    runs = [run for name in options.runs for run in _runs_of(name, base)]
    if options.html is not None:
        from nanochat.runner.report.comparison_page import comparison_page  # here, because matplotlib takes long

        write_text(options.html, comparison_page(runs, base))
        print(f"wrote {options.html}")
        return
    comparison = compare_runs(runs, base)
    if options.json:
        print_json(comparison_to_json(comparison))
    else:
        print(render_comparison(comparison), end="")


def _runs_of(name: str, base: Path) -> list[Run]:
    """Return the run that a name means, or the runs of all cells that have begun if it is a sweep."""
    if (sweep := look_for_sweep(name, base)) is None:
        return [find_run(name, base)]
    runs = [result.run for result in read_results(sweep[1], base) if result.run is not None]
    if not runs:
        raise RecipeError(f"no cell of the sweep {name} has begun yet")
    return runs


def gc(options: argparse.Namespace) -> None:
    """Delete stage outputs, token caches, converted copies, downloads and scratch files that no run uses."""
    base = runtime.base_dir()
    if not options.dry_run:
        runtime.check_base_dir(base)
    collectors = {
        "stage output": (collector.find_unreferenced_stages, collector.delete_unreferenced_stages),
        "token cache": (collector.find_unreferenced_token_caches, collector.delete_unreferenced_token_caches),
        "converted file": (collector.find_unneeded_copies, collector.delete_unneeded_copies),
        "download": (collector.find_unneeded_downloads, collector.delete_unneeded_downloads),
        "scratch file": (collector.find_dead_scratch, collector.delete_dead_scratch),
    }
    found = {what: (find if options.dry_run else delete)(base) for what, (find, delete) in collectors.items()}
    folders = [folder for kind in found.values() for folder in kind]
    for folder in folders:
        print(f"{folder.path} ({show_bytes(folder.size_bytes)})")
    counts = [several(len(kind), what) for what, kind in found.items() if kind or what == "stage output"]
    action = "would delete" if options.dry_run else "deleted"
    print(f"{action} {' and '.join(counts)}: {show_bytes(sum(folder.size_bytes for folder in folders))}")
    if not found["stage output"] and list_runs(base):
        runs = runs_folder(base)
        print(f"runs keep their results: to remove a run, delete its folder in {runs} and type this command again")


def _stages(summary: RunSummary) -> str:
    count = len(summary.run.state.stages)
    return f"{count - len(summary.unfinished)}/{count}"


def _headline(summary: RunSummary) -> str:
    """Return results of the evaluations, or else of the last training, and whether they are reproducible."""
    mark = " (trained for a wall time: not reproducible)" if summary.time_remarks else ""
    evaluated = [stage for stage in reversed(evaluation_stages()) if stage in summary.records]
    trained = [stage for stage in reversed(training_stages()) if stage in summary.records][:1]
    shown = [result for stage in evaluated or trained for result in _main_results(summary, stage)]
    if shown:
        return ", ".join(f"{result.stage}.{result.metric} {show_value(result.value)}" for result in shown) + mark
    if summary.lost:
        return f"the results of {', '.join(summary.lost)} are not here"
    return datetime.fromtimestamp(summary.run.state.created).strftime("%Y-%m-%d %H:%M")


def _main_results(summary: RunSummary, stage: str) -> list[Result]:
    """Return the first results of a stage, means of several suites before those of single ones."""
    # Metrics with a dot, such as `bpb.bytes`, only explain the result that is their beginning.
    results = [
        result
        for result in summary.results
        if result.stage == stage and "." not in result.metric and result.metric not in SKIPPED_METRICS
    ]
    suites = [result for result in results if not result.metric.startswith("chat_core")]
    means = [result for result in results if result.metric == "chat_core" and len(suites) > 1]
    return [*means, *suites][:_SHOWN_RESULTS]
