"""The verb `watch` of `nanochat-run`: follow a run that another command works on."""

from __future__ import annotations

import argparse
import sys
import textwrap
import time
from collections.abc import Iterator
from functools import partial

from rich.live import Live
from rich.text import Text

from nanochat import runtime
from nanochat.cli.console import TerminalConsole
from nanochat.cli.text_curve import draw_curve
from nanochat.runner.run_snapshot import Snapshot, take_snapshot
from nanochat.runner.store.run_catalog import find_run
from nanochat.runner.sweeps.results.sweep_catalog import look_for_sweep
from nanochat.runner.sweeps.results.sweep_snapshot import take_sweep_snapshot
from nanochat.terminal.output import allow_loss, is_read

_REFRESH_SECONDS = 1.0
_LOOKS_PER_LINE = 10
"""A log gets a line less often than a terminal is drawn."""
_IDLE_BETWEEN_CELLS = 3
"""Successive looks without a running cell after which a sweep with waiting cells counts as stopped. A scheduler that
starts a command for each cell leaves gaps."""
_CURVE_HEIGHT, _MAX_WIDTH = 10, 100
_BETWEEN_STAGES, _NO_BREAK = "  ", "\N{NO-BREAK SPACE}"


def watch(options: argparse.Namespace) -> None:
    """Show the progress and the curve of a run until it ends. Then exit with its exit code. `--once` shows it once."""
    allow_loss()
    console = TerminalConsole()
    width = min(console.width, _MAX_WIDTH)
    snapshots = _snapshots(options.run)
    if options.once:
        _print_page(next(snapshots), console, width)
        return
    sys.exit((_draw if console.is_terminal else _log)(snapshots, console, width).exit_code)


def _draw(snapshots: Iterator[Snapshot], console: TerminalConsole, width: int) -> Snapshot:
    """Draw each snapshot over the one before it, and return the last."""
    with Live(console=console, auto_refresh=False) as live:
        for snapshot in snapshots:
            lines = [part for line in _page(snapshot, width) for part in _wrap(line, width)]
            live.update(Text("\n".join(lines)), refresh=True)
    return snapshot


def _wrap(line: str, width: int) -> list[str]:
    """Return a line as lines that fit, because `Live` cuts off the rest. A stage stays beside its status."""
    if len(line) <= width:
        return [line]
    glued = line.replace(" ", _NO_BREAK).replace(2 * _NO_BREAK, _BETWEEN_STAGES)
    parts = textwrap.wrap(glued, width, subsequent_indent="  ", break_on_hyphens=False)
    return [part.replace(_NO_BREAK, " ") for part in parts]


def _log(snapshots: Iterator[Snapshot], console: TerminalConsole, width: int) -> Snapshot:
    """Print a line about some of the snapshots and the page of the last, and return that."""
    last = next(snapshots)
    for count, snapshot in enumerate(snapshots):
        if last.is_active and count % _LOOKS_PER_LINE == 0:
            console.print_line(_line(last))
        last = snapshot
    _print_page(last, console, width)
    return last


def _print_page(snapshot: Snapshot, console: TerminalConsole, width: int) -> None:
    for line in _page(snapshot, width):
        console.print_line(line)


def _snapshots(reference: str) -> Iterator[Snapshot]:
    """Yield the progress of a run, every `_REFRESH_SECONDS`, until it has ended or the output is closed."""
    base = runtime.base_dir()
    sweep = look_for_sweep(reference, base)
    take = partial(take_snapshot, find_run(reference, base)) if sweep is None else partial(take_sweep_snapshot, *sweep)
    idle = 0
    while True:
        snapshot = take(base)
        yield snapshot
        idle = 0 if snapshot.is_active else idle + 1
        may_continue = sweep is not None and snapshot.status == "interrupted"
        if idle > (_IDLE_BETWEEN_CELLS if may_continue else 0) or not is_read():
            return
        time.sleep(_REFRESH_SECONDS)


def _page(snapshot: Snapshot, width: int) -> list[str]:
    curve = draw_curve(*snapshot.curve, width=width, height=_CURVE_HEIGHT)
    stages = _BETWEEN_STAGES.join(f"{title} {status}" for title, status in snapshot.stages)
    return [f"{snapshot.reference}: {stages}", *([f"{snapshot.curve_name}:"] if curve else []), *curve, _line(snapshot)]


def _line(snapshot: Snapshot) -> str:
    """Return the line about the present stage or, if no process works on the run, about its end."""
    if not snapshot.is_active:
        return f"{snapshot.status}" + (f": {snapshot.message}" if snapshot.message else "")
    if snapshot.title is None:
        return "between two stages"
    return f"{snapshot.title}: {snapshot.fraction:4.0%} {snapshot.text or 'starting'}"
