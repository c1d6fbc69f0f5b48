"""The interface through which a run shows lines and progress. The command line implements it."""

from __future__ import annotations

from typing import Protocol


class Display(Protocol):
    """Shows permanent lines and the progress of the current stage."""

    def log_line(self, text: str) -> None:
        """Show a permanent line."""

    def show_progress(self, title: str, fraction: float, text: str) -> None:
        """Show the progress of the current stage. Called a few times a second."""

    def clear_progress(self) -> None:
        """Remove the progress, because the stage ended."""
