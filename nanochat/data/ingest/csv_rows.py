"""Reads the rows of a csv or tsv file. Every cell stays the text that the file holds.

The `csv` builder of `datasets` is not used here: it cannot say in which line a row lies, nor skip a bad row.
"""

from __future__ import annotations

import csv
import itertools
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from nanochat.data.files.formats.encodings import encoding_problem
from nanochat.data.files.formats.streams import open_text
from nanochat.data.ingest.row_tables import FoundRow, UnreadableFileError
from nanochat.plurals import several

_MAX_FIELD_CHARS = 1 << 24
_SEPARATORS = ",;\t|"
_SAMPLED_RECORDS = 100

_Record = tuple[int, list[str] | str]
"""The first line of a record, and its fields, or what is wrong with it."""


def csv_rows(path: Path, file_format: str) -> Iterator[FoundRow]:
    """Yield the rows of a csv or tsv file, whose first line names the columns. A short row lacks its last values.

    Raises:
        UnreadableFileError: the header cannot be read.
    """
    if (problem := encoding_problem(path)) is not None:
        yield FoundRow("", {}, problem)
        return
    csv.field_size_limit(_MAX_FIELD_CHARS)
    separator = "\t" if file_format == ".tsv" else _separator(path)
    has_quotes = separator != "\t" or _is_quoted(path)
    records = _records(path, separator, has_quotes=has_quotes)
    header = _header(next(records, None))
    for line, fields in records:
        if isinstance(fields, list) and len(fields) > len(header):
            shown = "a tab" if separator == "\t" else f"`{separator}`"
            fields = (
                f"{several(len(fields), 'value')}, but the header has {len(header)}; quote values that contain {shown}"
            )
        if isinstance(fields, str):
            yield FoundRow(f":{line}", {}, fields)
        else:
            yield FoundRow(f":{line}", dict(itertools.zip_longest(header, fields)))


def _header(record: _Record | None) -> list[str]:
    """Return the names of the columns; none if the file is blank."""
    if record is None:
        return []
    line, names = record
    if isinstance(names, str):
        raise UnreadableFileError(f":{line}: the header cannot be read: {names}")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UnreadableFileError(f":{line}: the header names a column twice: {', '.join(map(repr, repeated))}")
    if not "".join(names).isascii() and any("\udc80" <= character <= "\udcff" for character in "".join(names)):
        raise UnreadableFileError(f":{line}: the header is not UTF-8: save the file as UTF-8")
    return names


def _separator(path: Path) -> str:
    """Return the character that separates the fields of a csv file, judged by its header.

    If several might, it is the one that gives most of the first rows as many fields as the header has.

    Raises:
        UnreadableFileError: several separators fit equally well.
    """
    fitting: Counter[str] = Counter()
    for separator in _SEPARATORS:
        records = itertools.islice(_records(path, separator, has_quotes=True), _SAMPLED_RECORDS)
        sizes = [len(fields) if isinstance(fields, list) else 0 for _, fields in records]
        if sizes and sizes[0] > 1:
            fitting[separator] = sizes.count(sizes[0])
    if not fitting:
        return ","
    (best, most), *others = fitting.most_common()
    if others and others[0][1] == most:
        choices = " or ".join(f"`{separator}`" for separator in sorted(fitting))
        raise UnreadableFileError(
            f":1: the fields may be separated by {choices}; name the columns so that the header has only one of them"
        )
    return best


def _is_quoted(path: Path) -> bool:
    """Return whether every field of a tsv file that begins with a quote also ends with one: quotes enclose fields."""
    return all(isinstance(fields, list) for _, fields in _records(path, "\t", has_quotes=True))


def _records(path: Path, separator: str, *, has_quotes: bool) -> Iterator[_Record]:
    """Yield the records that are not blank.

    A quote that is never closed makes its own line bad. Other faults make all lines of their record bad, because the
    lines after the first may be parts of a text.
    """
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if has_quotes else csv.QUOTE_NONE
    with open_text(path) as file:
        lines = _Lines(file)
        reader = csv.reader(lines, delimiter=separator, quoting=quoting, strict=True)
        while True:
            first = lines.begin_record()
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "expected after" in str(error):
                    yield first, "text after the closing quote of a value; write each quote inside a value twice"
                    for line in range(first + 1, lines.number + 1):
                        yield line, f"part of the bad row that begins in line {first:,}"
                else:  # the end of the file, or a value that is too long
                    yield first, f"a quote is never closed, or a value has more than {_MAX_FIELD_CHARS >> 20} MB"
                    lines.read_again_from_second()
            else:
                if fields:
                    yield first, fields


class _Lines:
    """The lines of a file, with those of the current record, which can be read again."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._record: list[str] = []
        self._again: deque[str] = deque()
        self.number = 0
        """The number of the line returned last."""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self._record.append(line)
        self.number += 1
        return line

    def begin_record(self) -> int:
        """Forget the lines of the record before, and return the number of the next line."""
        self._record.clear()
        return self.number + 1

    def read_again_from_second(self) -> None:
        """Go back to the second line of the current record."""
        self._again.extendleft(reversed(self._record[1:]))
        self.number -= len(self._record) - 1
