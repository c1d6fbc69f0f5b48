"""Texts under a key of the objects in a jsonl file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nanochat.data.files.bad_rows import RowProblems
from nanochat.data.files.cursors import Cursor
from nanochat.data.files.formats.json_lines import json_lines
from nanochat.data.splits import held_out_by


def json_texts(
    path: Path, column: str, cursor: Cursor, problems: RowProblems, *, keeps_held_out: bool
) -> Iterator[tuple[str, Cursor]]:
    """Yield the texts of a jsonl file, as `readers.read_texts` does."""
    bad = counted = cursor[2]
    end = cursor
    for line in json_lines(path, cursor):
        try:
            text = line.text_in(column)
        except ValueError as error:
            bad += 1
            end = (line.next_byte, line.line, bad)
            problems.add_bad(f"{line.where()}: {error}", bad)
            continue
        if not keeps_held_out and isinstance(line.value, dict) and (reason := held_out_by(line.value)) is not None:
            problems.add_held_out(reason, line.where)
            continue
        if text and not text.isspace():
            yield text, (line.next_byte, line.line, bad)
            counted = bad
        else:
            problems.add_empty(line.where)
    if bad > counted:
        yield "", end
