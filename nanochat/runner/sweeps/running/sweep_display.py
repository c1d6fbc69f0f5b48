"""Shows the lines and the progress of cells, of which several may run at a time in threads of their own."""

from __future__ import annotations

import threading

from nanochat.runner.display import Display


class SweepDisplay:
    """Passes on what cells show, one line at a time, with the number of the cell before it."""

    def __init__(self, display: Display, count: int) -> None:
        self._display = display
        self._count = count
        self._lock = threading.Lock()
        self._running: dict[int, tuple[str, float, str]] = {}

    def log_line(self, text: str) -> None:
        """Show a line about the whole sweep."""
        with self._lock:
            self._display.log_line(text)

    def clear_progress(self) -> None:
        """Remove the progress."""
        with self._lock:
            self._display.clear_progress()

    def show_progress(self, title: str, fraction: float, text: str) -> None:
        """Show the progress of something that is not a cell."""
        with self._lock:
            self._display.show_progress(title, fraction, text)

    def cell(self, number: int) -> CellDisplay:
        """Return the display for a cell."""
        return CellDisplay(self, number)

    def log_of_cell(self, number: int, text: str) -> None:
        """Show a line of a cell."""
        self.log_line(f"cell {number}/{self._count}: {text}")

    def update(self, number: int, progress: tuple[str, float, str] | None) -> None:
        """Show the progress of a cell: title, fraction and text. None if it is not in a stage."""
        with self._lock:
            if progress is None:
                self._running.pop(number, None)
                self._display.clear_progress()
                return
            self._running[number] = progress
            if len(self._running) == 1:
                title, fraction, text = progress
                self._display.show_progress(f"cell {number}/{self._count}: {title}", fraction, text)
                return
            fractions = [fraction for _, fraction, _ in self._running.values()]
            parts = [f"{cell}: {title} {share:.0%}" for cell, (title, share, _) in sorted(self._running.items())]
            self._display.show_progress("cells", sum(fractions) / len(fractions), ", ".join(parts))


class CellDisplay:
    """The display that a run gets as a cell of a sweep."""

    def __init__(self, sweep: SweepDisplay, number: int) -> None:
        self._sweep, self._number = sweep, number

    def log_line(self, text: str) -> None:
        """Show a line."""
        self._sweep.log_of_cell(self._number, text)

    def show_progress(self, title: str, fraction: float, text: str) -> None:
        """Show the progress of the current stage."""
        self._sweep.update(self._number, (title, fraction, text))

    def clear_progress(self) -> None:
        """Remove the progress, because the stage ended."""
        self._sweep.update(self._number, None)
