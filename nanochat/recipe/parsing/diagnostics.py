"""Errors in a recipe, shown with code, file, line and column, the line with carets under the error, and a suggestion.

Not here: finding the errors. See `yaml_reader`, `merge` and `check`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nanochat.errors import RecipeError
from nanochat.plurals import several

LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
"""The line breaks of PyYAML, so that its line numbers are ours."""
_MAX_LINE_CHARS = 110
_MAX_SHOWN = 50
_UNPRINTABLE = ("Cc", "Cs", "Cf", "Zl", "Zp")
"""Unicode categories that would disturb a terminal: controls, surrogates, formats, line and paragraph separators."""


@dataclass(frozen=True, eq=False)
class Text:
    """A text that a recipe is read from: a file, or a `--set` flag."""

    name: str
    """The file as the user wrote it, or `--set`."""
    content: str
    folder: Path
    """The folder at which relative paths in this text start."""
    flag_number: int = 0
    """Position among the `--set` flags, counted from 1; 0 for a file."""
    lines: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lines", tuple(LINE_BREAK.split(self.content)))

    @property
    def is_flag(self) -> bool:
        return self.flag_number > 0

    def line(self, number: int) -> str:
        """Return line `number`, counted from 1, or an empty string if there is no such line."""
        return self.lines[number - 1] if 1 <= number <= len(self.lines) else ""


@dataclass(frozen=True)
class Origin:
    """The place of a key or value in a text. Line and column count from 1."""

    text: Text = field(repr=False)
    line: int
    column: int
    length: int = 1

    def __str__(self) -> str:
        return self.text.content if self.text.is_flag else f"{self.text.name}:{self.line}"


@dataclass(frozen=True)
class Diagnostic:
    """An error in a recipe. `origin` is None if there is no text to point at, such as a missing file."""

    code: str
    message: str
    origin: Origin | None
    help: str = ""

    def render(self) -> str:
        """Return the lines to show to the user, without a final newline."""
        lines = [f"error[{self.code}]: {_printable(self.message)}"]
        if self.origin is not None:
            lines += _snippet(self.origin)
        if self.help:
            lines.append(f"  = {_printable(self.help)}")
        return "\n".join(lines)


class LocatedRecipeError(RecipeError):
    """A `RecipeError` whose message shows all its `diagnostics`, sorted by place and without duplicates."""

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics = tuple(sorted(dict.fromkeys(diagnostics), key=_place))
        assert self.diagnostics, "there is something wrong"
        super().__init__(_render(self.diagnostics))


def refusal(code: str, message: str, origin: Origin | None, help: str = "") -> LocatedRecipeError:  # noqa: A002
    """Return an exception with a single error, for the caller to raise."""
    return LocatedRecipeError([Diagnostic(code, message, origin, help)])


def _place(diagnostic: Diagnostic) -> tuple[int, str, int, int]:
    origin = diagnostic.origin
    return (origin.text.flag_number, origin.text.name, origin.line, origin.column) if origin else (0, "", 0, 0)


def _render(diagnostics: Sequence[Diagnostic]) -> str:
    count = several(len(diagnostics), "error")
    if len(diagnostics) > _MAX_SHOWN:
        count += f" (the first {_MAX_SHOWN} are shown)"
    shown = [diagnostic.render() for diagnostic in diagnostics[:_MAX_SHOWN]]
    return "\n\n".join([*shown, f"{count} in the recipe"])


def _snippet(origin: Origin) -> list[str]:
    """Return the place, and its line with carets under the characters that are wrong."""
    line, column = _cut(origin.text.line(origin.line), origin.column)
    place, number = f"{origin.text.name}:{origin.line}:{origin.column}", str(origin.line)
    if origin.text.is_flag:
        place, number = origin.text.name, ""
    margin = max(len(number), 2)
    start, end = column - 1, column - 1 + origin.length
    carets = " " * _width(_printable(line[:start])) + "^" * max(_width(_printable(line[start:end])), 1)
    bar = " " * (margin + 2) + "|"
    return [
        _printable(f"  --> {place}"), bar, f" {number:>{margin}} | {_printable(line)}".rstrip(), f"{bar} {carets}",
    ]  # fmt: skip


def _cut(line: str, column: int) -> tuple[str, int]:
    """Return the part of a long line around `column`, and the position of the column in that part."""
    if len(line) <= _MAX_LINE_CHARS:
        return line, column
    start = max(0, column - 1 - _MAX_LINE_CHARS // 2)
    part = line[start : start + _MAX_LINE_CHARS]
    head, tail = ("…" if start else ""), ("…" if start + _MAX_LINE_CHARS < len(line) else "")
    return head + part + tail, column - start + len(head)


def _printable(text: str) -> str:
    """Return `text` with a space for each tab, and other control characters and surrogates replaced."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(char) in _UNPRINTABLE else char
        for char in text.replace("\t", " ")
    )


def _width(text: str) -> int:
    """Return the number of terminal cells that `text` takes."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.combining(char) > 0 for char in text)
