"""Figures that need no display, and how they are saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nanochat.storage.files import atomic_write

if TYPE_CHECKING:  # imported only when something is drawn, because it takes long
    from matplotlib.figure import Figure

_DPI = 110


def new_figure(width: float, height: float, *, layout: Literal["constrained"] | None = None) -> Figure:
    """Return an empty figure of this size in inches."""
    # Unlike pyplot, the object interface does not choose a backend that may need a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG file, whole or not at all. The same figure always gives the same file."""
    with atomic_write(path) as scratch:
        figure.savefig(scratch, dpi=_DPI, metadata={"Software": None})
