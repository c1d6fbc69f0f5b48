"""The verbs of `nanochat-run` about data: data and fetch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from rich.text import Text

from nanochat import runtime
from nanochat.cli.console import TerminalConsole
from nanochat.cli.json_output import print_json
from nanochat.cli.verbs.recipe_commands import overrides_of
from nanochat.errors import PreflightError
from nanochat.plurals import several
from nanochat.recipe.load import load_recipe
from nanochat.terminal.output import is_read, printable

if TYPE_CHECKING:  # importing it takes long
    from nanochat.runner.inspection.inspect_sources import SourceReport
    from nanochat.runner.inspection.split_report import SplitReport

_TRAINED_STYLE, _CONTEXT_STYLE = "bold green", "dim"


def data(options: argparse.Namespace) -> None:
    """Print the size, the kind and the first items of the data of a recipe, or of one of its sources.

    Raises:
        RecipeError: the recipe is not valid, or has no such source.
        PreflightError: some data cannot be read. All the others are shown first.
    """
    from nanochat.runner.inspection.inspect_sources import inspect_sources
    from nanochat.runner.preflight.prepare import prepare

    prepared = prepare(load_recipe(options.recipe, overrides_of(options)), runtime.base_dir())
    sources = inspect_sources(prepared, options.source, limit=options.limit or sys.maxsize)
    if options.json:
        _print_json(sources)
        return
    console = TerminalConsole()
    problems = 0
    for source in sources:
        console.print_line(Text(printable(source.heading), "bold"))
        for fact in source.facts:
            console.print_line(f"  {fact}")
        known: set[str] = set()
        for split in source.splits:
            _show_split(console, split, known)
            problems += split.error is not None
            if not is_read():
                break
        console.print_line("")
        if not is_read():
            break
    if problems:
        raise PreflightError(f"{several(problems, 'split')} cannot be read; the problems are listed above")


def _print_json(sources: Iterable[SourceReport]) -> None:
    """Print all sources as one document. Raises PreflightError at the end if some data cannot be read."""
    from nanochat.runner.inspection.inspect_sources import source_to_json

    shown = [source_to_json(source) for source in sources]
    print_json({"sources": list(shown)})
    for source in shown:
        for split in cast(list[dict[str, str | None]], source["splits"]):
            if split["error"] is not None:
                raise PreflightError(split["error"])


def fetch(options: argparse.Namespace) -> None:
    """Download, pin and convert all that a run of the recipe needs."""
    from nanochat.cli.progress import make_display
    from nanochat.runner.preflight.fetch import fetch_recipe

    display = make_display()
    try:
        fetch_recipe(options.recipe, overrides_of(options), base=runtime.base_dir(), display=display)
    finally:
        display.clear_progress()


def _show_split(console: TerminalConsole, split: SplitReport, known: set[str]) -> None:
    """Print a split without the notes on files and the errors that are `known` from another split of the source."""
    lines: list[str | Text] = [f"  {line}" for line in split.lines() if line.strip() not in known]
    for number, text in enumerate(split.texts, start=1):
        lines += [f"    document {number}:", *_indented([(text, True)], has_marks=False, console=console)]
    for number, runs in enumerate(split.chats, start=1):
        lines += [f"    conversation {number}:", *_indented(runs, has_marks=True, console=console)]
    if split.error is not None:
        lines.append(f"  {split.error}" if str(split.error) not in known else "  the same problem ends the reading")
    known |= {str(split.error), *(note for note in split.notes if note.startswith("source `"))}
    for line in lines:
        console.print_line(line)


def _indented(runs: Iterable[tuple[str, bool]], *, has_marks: bool, console: TerminalConsole) -> list[Text]:
    """Return the lines of a text, without its end if it is long.

    With marks, the text that is trained on is coloured on a terminal; elsewhere it is in `{+` and `+}`.
    """
    from nanochat.runner.inspection.split_report import SHOWN_CHARS

    is_coloured = has_marks and console.is_terminal and not console.no_color
    shown, total = Text(), 0
    for text, is_trained in runs:
        kept = printable(text[: max(0, SHOWN_CHARS - total)])
        total += len(text)
        if is_coloured:
            shown.append(kept, _TRAINED_STYLE if is_trained else _CONTEXT_STYLE)
        else:
            shown.append(f"{{+{kept}+}}" if has_marks and is_trained and kept else kept)
    if total > SHOWN_CHARS:
        shown.append(f" ... ({total:,} characters)")
    return [Text("      | ") + line for line in shown.split("\n")]
