"""Counts the rows that a task of fine-tuning has, for the plan: without pyarrow, whose import takes long.

Not here: which rows are refused or repeated. The stage counts those when it reads them.
"""

from __future__ import annotations

from pathlib import Path

from nanochat.data.files.file_kinds import reader_of
from nanochat.data.files.file_sizes import SMALL_BYTES
from nanochat.data.files.formats.parquet_footer import count_rows
from nanochat.data.files.formats.readable_file import ReadableFile
from nanochat.data.files.formats.streams import count_lines
from nanochat.data.ingest.pending import is_ready
from nanochat.data.splits import parse_split
from nanochat.errors import PreflightError, StageError
from nanochat.plan.estimate.dataset_sizes import known_examples, without_held_out
from nanochat.plan.specs.inputs import SftItem


def count_examples(item: SftItem, *, base: Path) -> int | None:
    """Return about how many different examples a task has, None if its data are not downloaded or converted yet.

    Of large files of lines only the beginning is read.
    """
    if item.source.builtin is not None:
        return known_examples(item)
    try:
        if not is_ready(item.source, base=base):
            return known_examples(item) if item.source.uri is not None else None
        from nanochat.data.task_rows import split_files  # imported only if there is something to count

        name, bounds = parse_split(item.split)
        count = sum(_count(file) for file in split_files(item.source, name, base=base))
    except (OSError, ValueError, PreflightError, StageError):  # the checks of the data report it
        return None
    count = len(range(count)[bounds or slice(None)])
    return without_held_out(min(count, item.max_examples or count), item.validation_frac)


def _count(file: ReadableFile) -> int:
    if reader_of(file.path) == "parquet":
        return count_rows(file.path)
    lines, read_bytes = count_lines(file.path, SMALL_BYTES)
    return round(lines * file.path.stat().st_size / max(1, read_bytes))
