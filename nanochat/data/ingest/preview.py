"""The first rows of a csv or tsv file as they are, before the file is converted."""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path

from nanochat.data.files.file_kinds import kind_of
from nanochat.data.files.formats.streams import blocks
from nanochat.data.ingest.csv_rows import csv_rows
from nanochat.data.ingest.row_tables import UnreadableFileError
from nanochat.errors import PreflightError, StageError
from nanochat.storage.files import write_bytes

_HEAD_BYTES = 1 << 20
"""Only the start of a file is looked at. Its last line, which may be cut, is left out."""
_PREVIEWED = (".csv", ".tsv")


@dataclass(frozen=True)
class FilePreview:
    """The columns of a table and its first rows; a missing value is None.

    `problem` says why there are none. `rows_in_head` is the number of rows in the part of the file that was looked at.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[str | None, ...], ...]
    rows_in_head: int
    is_whole: bool
    """Whether that part is the whole file."""
    problem: str = ""


def preview(path: Path, *, rows: int) -> FilePreview | None:
    """Return the first rows of a csv or tsv file. None for files of other kinds."""
    kind = kind_of(path)
    if kind is None or kind.format not in _PREVIEWED:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        head = Path(scratch) / f"head{kind.format}"
        try:
            is_whole = _write_head(path, head)
            found = list(csv_rows(head, kind.format))
        except (UnreadableFileError, PreflightError, StageError) as error:
            return FilePreview(path, (), (), 0, False, str(error).removeprefix(f"{path}").lstrip(":"))
    first = [row for row in found if row.problem is None]
    problem = next((f"line {row.place.lstrip(':')}: {row.problem}" for row in found if row.problem is not None), "")
    columns = tuple(first[0].values) if first else ()
    shown = tuple(
        tuple(None if (value := row.values.get(name)) is None else str(value) for name in columns)
        for row in itertools.islice(first, rows)
    )
    return FilePreview(path, columns, shown, len(first), is_whole, problem)


def _write_head(path: Path, head: Path) -> bool:
    """Write the whole lines at the start of a file, decompressed, and return whether they are the whole file."""
    content = b""
    for block in blocks(path):
        content += block
        if len(content) > _HEAD_BYTES:
            break
    else:
        write_bytes(head, content, durable=False)
        return True
    kept = content[:_HEAD_BYTES]
    write_bytes(head, kept[: kept.rfind(b"\n") + 1] or kept, durable=False)
    return False
