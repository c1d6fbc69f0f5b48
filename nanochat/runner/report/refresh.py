"""Brings the report of a run up to date, but never replaces it by one that shows less.

A run may have been archived without its stages, or some of their files may be gone. Then its report is kept as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nanochat.runner.report.run_report import report_text, write_report
from nanochat.runner.report.stage_files import damaged_files
from nanochat.runner.store.run_catalog import Run
from nanochat.storage.file_errors import DISK_FULL, is_no_permission


@dataclass(frozen=True)
class ShownReport:
    """The text of a report, and lines about its file: where it is, and why it was not written again."""

    text: str
    remarks: tuple[str, ...]


def refresh_report(run: Run, base: Path) -> ShownReport:
    """Write the report of a run again from its current records, if they hold all that it showed, and return it.

    If the report cannot be written, because the run belongs to another user or the disk is full, it is only returned.
    """
    path = run.folder.report
    if path.is_file() and (missing := list(_missing(run, base))):
        kept = f"it is kept as it was written, because it could not be written again: {'; '.join(missing)}"
        return ShownReport(path.read_text(encoding="utf-8"), (str(path), kept))
    try:
        write_report(run, base)
    except OSError as error:
        if not is_no_permission(error) and error.errno not in DISK_FULL:
            raise
        plots = sorted(plot.name for plot in run.folder.plots.glob("*.png"))
        return ShownReport(report_text(run, base, plots=plots), (f"not written: {path}: {error.strerror}",))
    return ShownReport(path.read_text(encoding="utf-8"), (str(path),))


def _missing(run: Run, base: Path) -> Iterator[str]:
    """Yield a remark on each result of a finished stage that a report shows and that is not here, or is damaged."""
    if lost := run.lost(base):
        yield run.describe_lost(base, lost)
    folders = run.folders(base)
    for log in (folders[stage].log for stage in run.records(base)):
        if not log.is_file():  # it grows with every attempt, so the record does not describe it
            yield f"{log} is missing"
    yield from (f"{path} {damage}" for path, damage in damaged_files(run, base).items())
