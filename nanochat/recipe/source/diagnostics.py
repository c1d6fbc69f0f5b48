"""Located findings about a recipe, and how they are shown: code, place, snippet with carets, suggestion.

Not here: finding them (see `yaml_reader`, `layers`, `validate`, `references`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from nanochat.errors import RecipeError

LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
"""What ends a line for PyYAML, so that line numbers agree."""
_SHOWN_WIDTH = 110
_SHOWN_DIAGNOSTICS = 50


@dataclass(frozen=True, eq=False)
class Text:
    """Something that a recipe was read from: a file, or one `--set` flag."""

    name: str
    """The file as the user wrote it, or `--set`."""
    content: str
    folder: Path
    """Relative paths written in this text are relative to this folder."""
    flag_number: int = 0
    """Place among the `--set` flags, from 1; 0 for a file."""
    lines: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lines", tuple(LINE_BREAK.split(self.content)))

    @property
    def is_flag(self) -> bool:
        """Whether this is a flag, not a file."""
        return self.flag_number > 0

    def line(self, number: int) -> str:
        """Return line `number`, counted from 1; empty past the end."""
        return self.lines[number - 1] if 1 <= number <= len(self.lines) else ""


@dataclass(frozen=True)
class Origin:
    """Where a key or value was written; line and column count from 1."""

    text: Text = field(repr=False)
    line: int
    column: int
    length: int = 1

    @property
    def file(self) -> str | None:
        """The file's name, or None for a flag."""
        return None if self.text.is_flag else self.text.name

    @property
    def flag(self) -> str | None:
        """The flag as typed (`--set KEY=VALUE`), or None for a file."""
        return self.text.content if self.text.is_flag else None

    def __str__(self) -> str:
        return self.text.content if self.text.is_flag else f"{self.text.name}:{self.line}"


@dataclass(frozen=True)
class Diagnostic:
    """One finding. `origin` is None where there is no text to point at, such as a file that does not exist."""

    code: str
    message: str
    origin: Origin | None
    help: str = ""
    length: int | None = None
    """Characters underlined, where that is not the origin's own length."""

    def render(self) -> str:
        """Return the finding as shown to the user, several lines without a final newline."""
        lines = [f"error[{self.code}]: {_printable(self.message)}"]
        if self.origin is not None:
            lines += _snippet(self.origin, self.length or self.origin.length)
        if self.help:
            lines.append(f"  = {_printable(self.help)}")
        return "\n".join(lines)


class LocatedRecipeError(RecipeError):
    """A `RecipeError` whose text shows each of its `diagnostics`."""

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics = tuple(in_order(diagnostics))
        assert self.diagnostics, "an error needs at least one finding"
        super().__init__(render_all(self.diagnostics))


def in_order(diagnostics: Iterable[Diagnostic]) -> list[Diagnostic]:
    """Return the findings without repetitions, by text, line and column; flags last."""
    unique = dict.fromkeys(diagnostics)

    def place(finding: Diagnostic) -> tuple[int, str, int, int]:
        if finding.origin is None:
            return (0, "", 0, 0)
        where = finding.origin
        return (where.text.flag_number, where.text.name, where.line, where.column)

    return sorted(unique, key=place)


def render_all(diagnostics: Iterable[Diagnostic]) -> str:
    """Return all findings as shown to the user, with a last line that counts them."""
    findings = list(diagnostics)
    blocks = [finding.render() for finding in findings[:_SHOWN_DIAGNOSTICS]]
    count = "1 error" if len(findings) == 1 else f"{len(findings)} errors"
    if len(findings) > _SHOWN_DIAGNOSTICS:
        count += f" (the first {_SHOWN_DIAGNOSTICS} are shown)"
    return "\n\n".join([*blocks, f"{count} in the recipe"])


def _snippet(origin: Origin, length: int) -> list[str]:
    line, column = origin.text.line(origin.line), origin.column
    line, column = _window(line, column)
    if origin.text.is_flag:
        arrow, number = f"  --> {origin.text.name}", ""
    else:
        arrow, number = f"  --> {origin.text.name}:{origin.line}:{origin.column}", str(origin.line)
    gutter = max(len(number), 2)
    before, under = _printable(line[: column - 1]), _printable(line[column - 1 : column - 1 + length])
    carets = " " * _width(before) + "^" * max(_width(under), 1)
    bar = " " * (gutter + 2) + "|"
    shown = _printable(line).rstrip()
    return [_printable(arrow), bar, f" {number:>{gutter}} | {shown}".rstrip(), f"{bar} {carets}"]


def _window(line: str, column: int) -> tuple[str, int]:
    """Return the part of a long line around `column`, and the column in that part."""
    if len(line) <= _SHOWN_WIDTH:
        return line, column
    start = max(0, column - 1 - _SHOWN_WIDTH // 2)
    part = line[start : start + _SHOWN_WIDTH]
    head, tail = ("…" if start else ""), ("…" if start + _SHOWN_WIDTH < len(line) else "")
    return head + part + tail, column - start + len(head)


def _printable(text: str) -> str:
    """Return `text` with tabs as one blank and other control characters and surrogates replaced."""
    return "".join(_shown(char) for char in text)


def _shown(char: str) -> str:
    if char == "\t":
        return " "
    return "\N{REPLACEMENT CHARACTER}" if unicodedata.category(char) in ("Cc", "Cs", "Cf", "Zl", "Zp") else char


def _width(text: str) -> int:
    """Return how many terminal cells `text` takes."""
    return sum(_cells(char) for char in text)


def _cells(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
