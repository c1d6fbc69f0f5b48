"""What a run tells its user while it goes on; the command line decides how it looks."""

from __future__ import annotations

from typing import Protocol


class Display(Protocol):
    """Receives lines that stay, and the progress of the present stage."""

    def log_line(self, text: str) -> None:
        """Show a line that stays."""

    def show_progress(self, title: str, fraction: float, text: str) -> None:
        """Show how far the present stage is; called a few times a second."""

    def clear_progress(self) -> None:
        """Take the progress away."""
