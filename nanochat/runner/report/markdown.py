"""Writes markdown in which text from elsewhere stays text: in lines, paragraphs, code and tables.

Descriptions, file names, data, error messages and what a model wrote may contain markdown, such as an image that names
a private file. All of it passes through the functions here, which escape whatever markdown would act on, or
is indented as code (`stages.process.context.indented`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from nanochat.terminal.output import printable

_RULES = {"l": "---", "r": "---:"}
_MARKUP = re.compile(r"[\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_])")
"""Characters that format, link or embed something. A `_` inside a word does not."""
_HTML = re.compile(r"<(?=[a-z/!?])|&(?=[a-z#])|:(?=[-\w+]+:|-)(?!\d\d:)", re.IGNORECASE)
"""Characters that begin a tag, an entity, or the name of an emoji. MLflow's reader knows no backslash before these.

The minutes between the colons of a time of day are no emoji.
"""
_ENTITIES = {"<": "&lt;", "&": "&amp;", ":": "&#58;"}
_BLOCK_START = re.compile(r"^(?:(\d{1,9})(?=[.)](?:\s|$))|(?=[-+](?:\s|$)|[-=:][-=:|\\\s]*$|#{1,6}(?:\s|$)|>))")
"""Where a line would begin a list, a rule, a heading, a table or a quotation: after its number or at its start."""


def escape(text: str) -> str:
    """Return markdown that shows a text on one line: in a heading, in a list item, or within a sentence."""
    return _BLOCK_START.sub(r"\1\\", _escape_cell(text))


def _escape_cell(text: str) -> str:
    """Return the same for the cell of a table, where nothing begins a block."""
    line = _MARKUP.sub(r"\\\g<0>", " ".join(printable(text).split()))
    return _HTML.sub(lambda found: _ENTITIES[found[0]], line)


def paragraphs(text: str) -> str:
    """Return markdown that shows a text with its lines and empty lines."""
    return re.sub(r"(?<=\S)\n(?=\S)", "  \n", "\n".join(map(escape, printable(text).splitlines())))


def join_parts(parts: Iterable[str]) -> str:
    """Return markdown of these parts, without the empty ones."""
    return "\n\n".join(part for part in parts if part)


def plot_image(name: str) -> str:
    """Return markdown that shows a plot of a report, a file in its folder `plots/`."""
    return f"![{name.removesuffix('.png').replace('_', ' ')}](plots/{name})"


def code_span(text: str) -> str:
    """Return markdown that shows a text on one line, as code. An empty text gives an empty text."""
    line = " ".join(printable(text).split())
    ticks = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    margin = " " if line[:1] == "`" or line[-1:] == "`" else ""
    return f"{ticks}{margin}{line}{margin}{ticks}" if line else ""


def markdown_table(columns: Sequence[str], alignment: str, rows: Iterable[Sequence[str]]) -> str:
    """Return a table of texts. `alignment` has a letter for each column: `l` for left or `r` for right."""
    rule = "|".join(_RULES[letter] for letter in alignment)
    lines = [f"| {' | '.join(map(_escape_cell, cells))} |" for cells in (columns, *rows)]
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])
