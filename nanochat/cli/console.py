"""Coloured text and progress bars on the standard output."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from nanochat.terminal.output import Output, printable


class TerminalConsole(Console):
    """Writes to the standard output. The text that it is given cannot control the terminal."""

    def __init__(self) -> None:
        file = sys.stdout.unescaped if isinstance(sys.stdout, Output) else sys.stdout
        super().__init__(file=file, highlight=False, soft_wrap=True)

    def print_line(self, line: str | Text) -> None:
        """Print a line. Text that `rich` would drop, such as a carriage return, is shown as an escape."""
        self.print(Text(printable(line)) if isinstance(line, str) else line)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments to write. Control sequences come from `rich`, never from the text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)
