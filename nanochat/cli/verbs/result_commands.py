"""The verbs of `nanochat-run` that work on the runs of this machine: ls, report, compare and gc."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path

from nanochat import runtime
from nanochat.plan.describe import several
from nanochat.plan.quantities import show_bytes, show_value
from nanochat.plan.stages import evaluation_stages, training_stages
from nanochat.runner.report.comparison import render_comparison
from nanochat.runner.report.refresh import refresh_report
from nanochat.runner.report.results import list_results
from nanochat.runner.store import gc as collector
from nanochat.runner.store.run_catalog import Run, describe_damage, find_run, list_damaged_runs, list_runs
from nanochat.runner.store.session import is_in_progress
from nanochat.runner.sweeps.catalog import look_for_sweep
from nanochat.runner.sweeps.report import write_sweep_report
from nanochat.storage.layout import runs_folder


def ls(_options: argparse.Namespace) -> None:
    """List the runs of this machine, the damaged ones first and the newest last."""
    base = runtime.base_dir()
    runs, damaged = list_runs(base), list_damaged_runs(base)
    if not runs and not damaged:
        print(f"no runs under {runs_folder(base)} yet; start one with `nanochat-run RECIPE`")
        return
    rows = [("run", "status", "stages", "results")]
    rows += [(f"{f.path.parent.name}/{f.path.name}", "damaged", "-", describe_damage(f)) for f in damaged]
    rows += [(run.reference, _status(run), _stages(run), _headline(run, base)) for run in runs]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip())


def report(options: argparse.Namespace) -> None:
    """Write the report of a run or a sweep from its current records, and print it."""
    base = runtime.base_dir()
    if (sweep := look_for_sweep(options.run, base)) is not None:
        print(write_sweep_report(*sweep, base).read_text(encoding="utf-8"), end="")
        return
    shown = refresh_report(find_run(options.run, base), base)
    print(shown.text, end="")
    for remark in shown.remarks:
        print(f"\n({remark})")


def compare(options: argparse.Namespace) -> None:
    """Print the results of several runs, and the differences of their recipes, side by side."""
    base = runtime.base_dir()
    print(render_comparison([find_run(reference, base) for reference in options.runs], base), end="")


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


def _status(run: Run) -> str:
    if run.state.status == "running" and not is_in_progress(run):
        return "died"
    return run.state.status


def _stages(run: Run) -> str:
    done = sum(entry.status in ("finished", "cached") for entry in run.state.stages)
    return f"{done}/{len(run.state.stages)}"


def _headline(run: Run, base: Path) -> str:
    records = run.records(base)
    for stage in (*reversed(evaluation_stages()), *reversed(training_stages())):
        if stage in records:
            results = list_results({stage: records[stage]})[:3]
            return ", ".join(f"{stage}.{result.metric} {show_value(result.value)}" for result in results)
    if lost := run.lost(base):
        return f"the results of {', '.join(lost)} are not here"
    return datetime.fromtimestamp(run.state.created).strftime("%Y-%m-%d %H:%M")
