"""Finds the files of sources that have to be converted before the stages can read them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nanochat.data.ingest.store import estimate_copy_bytes, is_convertible, unconverted_files
from nanochat.data.sources.source_contents import resolve_files
from nanochat.data.sources.source_downloads import is_available_offline
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import PreflightError


def files_to_convert(source: SourceSpec, *, base: Path) -> list[Path]:
    """Return the files of a source that are on this machine and have no converted copy yet.

    Raises:
        PreflightError: a path or pattern names nothing.
    """
    if not is_available_offline(source, base=base):
        return []
    return unconverted_files(convertible_files([source], base=base), base=base)


def convertible_files(sources: Iterable[SourceSpec], *, base: Path) -> list[Path]:
    """Return the files that are read from converted copies, each one once."""
    paths = (path for source in sources for path in resolve_files(source, base=base))
    return [path for path in dict.fromkeys(paths) if is_convertible(path)]


@dataclass(frozen=True)
class Conversion:
    """The files to convert for a source.

    Attributes:
        source: the name of the source.
        files: the files.
        disk_bytes: about how much disk their copies take.
    """

    source: str
    files: tuple[Path, ...]
    disk_bytes: int


def plan_conversions(sources: Iterable[SourceSpec], *, base: Path) -> list[Conversion]:
    """Return the files to convert for sources, each file once. Sources that cannot be found are left out."""
    known: set[Path] = set()
    conversions = []
    for source in sources:
        try:
            files = tuple(path for path in files_to_convert(source, base=base) if path not in known)
        except PreflightError:  # preflight reports it
            continue
        known.update(files)
        if files:
            conversions.append(Conversion(source.name, files, estimate_copy_bytes(files)))
    return conversions


def is_ready(source: SourceSpec, *, base: Path) -> bool:
    """Return whether the source can be read now: it is on this machine, and its files need no conversion."""
    return is_available_offline(source, base=base) and not files_to_convert(source, base=base)
