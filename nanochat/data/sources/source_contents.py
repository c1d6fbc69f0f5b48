"""The contents of a source: which files it has, their digest, and whether they can be read."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePath

from nanochat.data.files.content_checks import check_file, why_no_documents
from nanochat.data.files.digests import MEMORY_FILE, LineFilter, remembered_digests
from nanochat.data.files.file_sizes import are_small
from nanochat.data.files.selection.data_file import DataFile, split_of_file
from nanochat.data.files.selection.file_choice import FileChoice, list_reasons
from nanochat.data.files.selection.file_selection import Use
from nanochat.data.files.selection.local_files import find_files
from nanochat.data.files.selection.path_patterns import literal_path
from nanochat.data.hub import hub
from nanochat.data.hub.hub_source import DEFAULT_REVISION, is_on_hub
from nanochat.data.places import addresses
from nanochat.data.places.builtin import stdlib_corpus, words
from nanochat.data.sources.source_downloads import (
    address_of,
    hub_files,
    is_available_offline,
    resolve_revision,
    selection_of,
)
from nanochat.data.sources.source_spec import SourceSpec, as_preflight_error, describe
from nanochat.errors import PreflightError

_DESCRIPTION_SUFFIXES = (".yaml", ".csv")


def list_files(spec: SourceSpec, *, base: Path, use: Use = "text") -> FileChoice[Path]:
    """Return the files of a source that are read, in their fixed order, and those left out; none for a built-in one.

    For a hub data set, these are files of the downloaded copy, of which the first kind is read. `source_splits` decides
    which files a split has.

    Raises:
        PreflightError: a path or pattern names nothing, no file has content, or the hub data set is not downloaded.
    """
    if spec.builtin is not None:
        return FileChoice((), ())
    if spec.uri is not None and is_on_hub(spec.uri):
        snapshot = hub.cached(*hub_files(spec, spec.uri), base=base)
        choice = selection_of(spec).select(snapshot.files, snapshot.left_out, use=use)
        choice = replace(choice, notes=(*snapshot.notes, *choice.notes))
    else:
        try:
            choice = selection_of(spec).select(
                *find_files(local_paths(spec, base=base), base=base),
                use=use,
                why_unusable=lambda file: why_no_documents(file.path, spec.column),
            )
        except PreflightError as error:
            raise PreflightError(f"source `{spec.name}`: {error}") from None
    if not choice.used:
        raise PreflightError(f"{describe(spec)}: no file with content; left out: {list_reasons(choice.left_out)}")
    return choice


def local_paths(spec: SourceSpec, *, base: Path) -> tuple[str, ...]:
    """Return the paths and patterns of a local source, or the path of what was downloaded from an address.

    Raises:
        PreflightError: the source is not downloaded.
    """
    if spec.uri is not None:
        return (glob.escape(str(addresses.cached(address_of(spec, spec.uri), base=base))),)
    return spec.path or ()


def resolve_files(spec: SourceSpec, *, base: Path) -> tuple[Path, ...]:
    """Return the paths of the files that the recipe reads: for a source of text and rows, those of both."""
    return tuple(file.path for file in _files_read(spec, base=base))


def _files_read(spec: SourceSpec, *, base: Path) -> list[DataFile[Path]]:
    uses: tuple[Use, ...] = ("text", "rows")
    if spec.read_as in ("text", "chats", "rows"):
        uses = ("text" if spec.read_as == "text" else "rows",)
    files = {file.path: file for use in uses for file in list_files(spec, base=base, use=use).used}
    return [files[path] for path in sorted(files)]


def digest(spec: SourceSpec, *, base: Path, lines: LineFilter | None = None) -> str:
    """Return the sha256 (hex) of a source, without contacting the hub.

    What counts are names and contents of local files, uri and revision of a hub data set, or name and content of a file
    with an address, but not settings such as `column`. Of local files, everything that decides their splits counts:
    also the folders above them, the names of other files, and whether the recipe lists each file. In the folder of a
    bundle, yaml and csv files count too, since they describe its tasks. Of small local files, only the lines that
    `lines` accepts count. The digest of an unchanged file (path, size, time) is remembered under `base`.

    Raises:
        PreflightError: a path or pattern matches nothing.
    """
    if spec.uri is not None and not is_on_hub(spec.uri):
        return address_of(spec, spec.uri).digest
    if spec.uri is not None:
        return _sha256(f"{spec.uri}@{spec.revision or DEFAULT_REVISION}")
    if spec.builtin == "python-stdlib":
        return stdlib_corpus.corpus_digest()
    if spec.builtin == "spelling":
        return _sha256("\n".join(words.builtin_words()))
    files = _files_read(spec, base=base)
    paths = [*(file.path for file in files), *_description_files(spec)]
    names, lines = _relative_names(paths), lines if are_small(paths) else None
    with remembered_digests(base / MEMORY_FILE) as digest_of:
        parts = [f"{name}\0{digest_of(path, lines)}" for name, path in zip(names, paths, strict=True)]
    return _sha256("\n".join([*parts, *_splits_beyond_names(files, names[: len(files)])]))


def content_digest(spec: SourceSpec, *, base: Path) -> str:
    """Return the sha256 (hex) of a source as `digest` does, but for a hub data set that of the downloaded commit.

    Raises:
        PreflightError: the source is not on this machine.
    """
    if spec.uri is None or not is_on_hub(spec.uri):
        return digest(spec, base=base)
    return _sha256(f"{spec.uri}@{resolve_revision(spec, base=base, offline=True)}")


def check_source(spec: SourceSpec, base: Path, offline: bool) -> None:
    """Check before a run that a source can be read.

    Raises:
        PreflightError: the message says what is missing and where.
    """
    with as_preflight_error(spec):
        if spec.uri is not None and not is_available_offline(spec, base=base):
            if is_on_hub(spec.uri):
                hub.check_download(*hub_files(spec, spec.uri), base=base, offline=offline)
            else:
                addresses.check(address_of(spec, spec.uri), base=base, offline=offline)
            return
        for path in resolve_files(spec, base=base):
            check_file(path)
    if spec.builtin is not None:
        digest(spec, base=base)


def _splits_beyond_names(files: Sequence[DataFile[Path]], names: Sequence[str]) -> list[str]:
    """Return what decides the splits of files and is not in their names below the folder that contains them all."""
    labels = [file.split.label if file.split is not None else None for file in files]
    by_name = [split_of_file(PurePath(name)) for name in names]
    others = [
        f"{name}\0split {label}"
        for name, label, known in zip(names, labels, by_name, strict=True)
        if label != (known.label if known is not None else None)
    ]
    are_listed = any(labels) and all(file.is_named for file in files)
    return [*others, "listed"] if are_listed else others


def _description_files(spec: SourceSpec) -> list[Path]:
    if spec.read_as != "bundle":
        return []
    folders = [path for pattern in spec.path or () if os.path.isdir(path := literal_path(pattern))]  # noqa: PTH112
    files = {file for folder in folders for file in folder.rglob("*")}
    return sorted(file for file in files if file.suffix.lower() in _DESCRIPTION_SUFFIXES and file.is_file())


def _relative_names(files: Sequence[Path]) -> list[str]:
    """Return the files' names relative to the innermost folder that contains them all."""
    folders = [file.absolute().parent for file in files]
    candidates = (folders[0], *folders[0].parents)
    shared = next(folder for folder in candidates if all(other.is_relative_to(folder) for other in folders))
    return [file.absolute().relative_to(shared).as_posix() for file in files]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()  # names of files need not be UTF-8
