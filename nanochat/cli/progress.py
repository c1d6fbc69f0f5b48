"""Shows the progress of a run: a progress bar on a terminal, and otherwise a line every few seconds."""

from __future__ import annotations

import sys
import time

from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from nanochat.cli.console import TerminalConsole
from nanochat.terminal.output import allow_loss

_PLAIN_EVERY_SECONDS = 10.0


class TerminalDisplay:
    """A progress bar below the lines that have been printed."""

    def __init__(self) -> None:
        self._console = TerminalConsole()
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def log_line(self, text: str) -> None:
        """Print a line above the progress bar."""
        self._console.print_line(text)

    def show_progress(self, title: str, fraction: float, text: str) -> None:
        """Draw or update the progress bar."""
        # In local variables, because a signal that suspends the run clears the progress in between.
        progress, task = self._progress, self._task
        if progress is None or task is None:
            progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=12),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
                console=self._console,
                transient=True,
                refresh_per_second=4,
            )
            task = progress.add_task(title, total=1.0, text=text)
            progress.start()
            self._progress, self._task = progress, task
        progress.update(task, completed=fraction, description=title, text=text)

    def clear_progress(self) -> None:
        """Remove the progress bar."""
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._task = None, None


class PlainDisplay:
    """Plain lines, for logs and pipes."""

    def __init__(self) -> None:
        self._last_shown = time.monotonic()

    def log_line(self, text: str) -> None:
        """Print a line."""
        print(text, flush=True)

    def show_progress(self, title: str, fraction: float, text: str) -> None:
        """Print a line with the progress, unless one was printed a few seconds ago."""
        now = time.monotonic()
        if now - self._last_shown < _PLAIN_EVERY_SECONDS:
            return
        self._last_shown = now
        print(f"{title}: {fraction:4.0%} {text}", flush=True)

    def clear_progress(self) -> None:
        """Do nothing, because lines stay."""


def make_display() -> TerminalDisplay | PlainDisplay:
    """Return a display for a terminal if the standard output is one, else a display for logs.

    A command with a display succeeds without it: what it does is on disk.
    """
    allow_loss()
    return TerminalDisplay() if sys.stdout.isatty() else PlainDisplay()
