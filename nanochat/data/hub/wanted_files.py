"""Finds the files of a hub data set that a source reads: those of its revision, or the parquet copy of the hub."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from nanochat.data.files.selection.file_choice import FileChoice
from nanochat.data.files.selection.file_selection import FileSelection
from nanochat.data.hub.hub_source import DEFAULT_REVISION, HubSource
from nanochat.data.hub.listing import Listing, RemoteFile, RevisionMissingError, list_files
from nanochat.data.hub.shared_cache import cache_folder, find_cached_file, list_cached_files
from nanochat.errors import PreflightError
from nanochat.plurals import list_names, several

PARQUET_COPY = "refs/convert/parquet"
"""The branch where the hub keeps data sets as parquet files: `CONFIGURATION/SPLIT/0000.parquet`."""

_PARTIAL = "partial-"
_SHOWN_FILES = 10


@dataclass(frozen=True)
class WantedFiles:
    """The commit, the files to read, the names of other matching files with the reason for each, and notes."""

    commit: str
    files: tuple[RemoteFile, ...]
    left_out: dict[str, str]
    notes: tuple[str, ...] = ()


def find_wanted_files(source: HubSource, selection: FileSelection, *, offline: bool) -> WantedFiles:
    """Choose the files that a source reads from the list of its files: the hub's or, offline, the shared cache's.

    Raises:
        PreflightError: there is no list of files, or no file that can be read; the message suggests what can.
    """
    listing = _list(source, offline=offline)
    choice = _choose(source, selection, listing)
    if _has_data(choice) or _has_data(_choose(replace(source, pattern=""), FileSelection(), listing)):
        wanted = _wanted(listing, choice)
        advice = ""
    else:
        wanted, advice = _parquet_copy(source, selection, _wanted(listing, choice), offline=offline)
    if not wanted.files:
        names = [file.path for file in listing.files]
        known = list_names(names, most=_SHOWN_FILES) or "none"
        raise PreflightError(f"{source.describe()}: no data file matches; files there are: {known}{advice}")
    return wanted


def check_cached(source: HubSource, wanted: WantedFiles) -> None:
    """Check that the shared cache has all the files.

    Raises:
        PreflightError: the message names missing files.
    """
    missing = [file.path for file in wanted.files if find_cached_file(source.repository, wanted.commit, file) is None]
    if missing:
        raise PreflightError(
            f"{source.describe()} is not downloaded, and {cache_folder(source.repository)} lacks {len(missing):,} of "
            f"{several(len(wanted.files), 'file')}, such as {missing[0]}; run once with the network, "
            "without `--offline`"
        )


def _list(source: HubSource, *, offline: bool) -> Listing:
    if not offline:
        return list_files(source.repository, source.revision)
    listing = list_cached_files(source.repository, source.revision)
    if listing is None:
        raise RevisionMissingError(
            f"{source.describe()} is not downloaded, and not in {cache_folder(source.repository)} either; "
            "run once with the network, without `--offline`"
        )
    return listing


def _choose(source: HubSource, selection: FileSelection, listing: Listing) -> FileChoice[PurePosixPath]:
    matching = [file for file in listing.files if source.matches(file.path)]
    return selection.select(source.file(file.path, PurePosixPath(file.path), file.size) for file in matching)


def _has_data(choice: FileChoice[PurePosixPath]) -> bool:
    return any(file.is_named or file.has_chosen_kind or not file.describes_others for file in choice.used)


def _wanted(listing: Listing, choice: FileChoice[PurePosixPath], *notes: str) -> WantedFiles:
    paths = {str(path) for path in choice.paths}
    files = sorted((file for file in listing.files if file.path in paths), key=lambda file: PurePosixPath(file.path))
    left_out = {str(path): reason for path, reason in choice.left_out}
    if not listing.is_complete:
        notes = (*notes, "these files lie in the Hugging Face cache, which may not have all files of the data set")
    return WantedFiles(listing.commit, tuple(files), left_out, notes)


def _parquet_copy(
    source: HubSource, selection: FileSelection, wanted: WantedFiles, *, offline: bool
) -> tuple[WantedFiles, str]:
    """Return the files of the parquet copy if a source means the whole copy, else `wanted` and how to read the copy."""
    copy = replace(source, revision=PARQUET_COPY)
    try:
        listing = _list(copy, offline=offline)
    except RevisionMissingError:
        return wanted, ""
    choice = _choose(copy, selection, listing)
    folders = sorted({path.parts[0] for path in choice.paths})
    is_whole = not any(part.startswith(_PARTIAL) for path in choice.paths for part in path.parts)
    if source.revision == DEFAULT_REVISION and len(folders) == 1 and is_whole:
        return _wanted(listing, choice, f"read from `{PARQUET_COPY}`, the hub's parquet copy of the data set"), ""
    folders = folders or sorted({PurePosixPath(file.path).parts[0] for file in listing.files if "/" in file.path})
    advice = f"; the hub has a parquet copy: set the source's `revision: {PARQUET_COPY}`"
    if len(folders) > 1:
        advice += f" and end its `uri` with one of the folders {', '.join(folders[:_SHOWN_FILES])}"
    if not is_whole:
        advice += " (it holds only the beginning of the data set)"
    return replace(wanted, files=()), advice
