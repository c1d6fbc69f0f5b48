"""Sources of documents and task rows: their files, their digests, and whether they can be read.

A source is local, a data set of the hub, a file with an address, or built in. Planning a run imports this module, so
it imports nothing heavy.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from nanochat.data.files.content_checks import check_file, why_no_documents
from nanochat.data.files.digests import MEMORY_FILE, LineFilter, remembered_digests
from nanochat.data.files.file_sizes import are_small
from nanochat.data.files.selection.file_selection import FileChoice, FileSelection, Use, list_reasons
from nanochat.data.files.selection.local_files import find_files, literal_path
from nanochat.data.hub import hub
from nanochat.data.hub.hub_source import DEFAULT_REVISION, HubSource, is_on_hub
from nanochat.data.places import addresses
from nanochat.data.places.addresses import Address
from nanochat.data.places.builtin import stdlib_corpus, words
from nanochat.data.places.connection import is_offline
from nanochat.data.places.manifest import DamagedDownloadError
from nanochat.data.places.transfer import Progress
from nanochat.errors import PreflightError, StageError

QuestionMap = tuple[tuple[Literal["question", "answer", "choices"], tuple[str, ...]], ...]
"""The keys, or texts with keys in braces, that hold the parts of a question."""
DEFAULT_VALIDATION_FRAC = 0.01
_DESCRIPTION_SUFFIXES = (".yaml", ".csv")


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """A source of the plan. Exactly one of `uri`, `path` and `builtin` is set."""

    name: str
    uri: str | None = None
    revision: str | None = None
    sha256: str | None = None
    path: tuple[str, ...] | None = None
    builtin: Literal["python-stdlib", "spelling"] | None = None
    column: str = "text"
    chat_map: tuple[tuple[Literal["system", "user", "assistant"], str], ...] = ()
    question_map: QuestionMap = ()
    max_bad_rows: float = 0.01
    max_files: int | None = None
    max_document_chars: int | None = None
    dedup: Literal["exact"] | None = None
    validation_shard: str | None = None
    validation_hash_frac: float | None = None
    read_as: Literal["text", "chats", "rows"] | None = None
    """What the recipe reads the source as; None if it is several of these, or not known."""


def describe(spec: SourceSpec) -> str:
    """Return the source's name and origin, for messages."""
    origin = spec.uri or spec.builtin or ", ".join(str(literal_path(pattern)) for pattern in spec.path or ())
    return f"source `{spec.name}` ({origin})"


def validation_frac(spec: SourceSpec) -> float:
    """Return the fraction of documents that a hash holds out if the source names no validation shard."""
    if spec.validation_hash_frac is not None:
        return spec.validation_hash_frac
    return stdlib_corpus.VALIDATION_FRAC if spec.builtin == "python-stdlib" else DEFAULT_VALIDATION_FRAC


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
        snapshot = hub.cached(*_hub_files(spec, spec.uri), base=base)
        choice = _selection(spec).select(snapshot.files, snapshot.left_out, use=use)
        choice = replace(choice, notes=(*snapshot.notes, *choice.notes))
    else:
        try:
            choice = _selection(spec).select(
                *find_files(local_paths(spec, base=base)),
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
        return (glob.escape(str(addresses.cached(_address(spec, spec.uri), base=base))),)
    return spec.path or ()


def resolve_files(spec: SourceSpec, *, base: Path) -> tuple[Path, ...]:
    """Return the paths of the files that the recipe reads: for a source of text and rows, those of both."""
    if spec.read_as is not None:
        return list_files(spec, base=base, use="text" if spec.read_as == "text" else "rows").paths
    uses: tuple[Use, ...] = ("text", "rows")
    return tuple(sorted({path for use in uses for path in list_files(spec, base=base, use=use).paths}))


def fetch(spec: SourceSpec, *, base: Path, offline: bool, progress: Progress | None = None) -> None:
    """Download a hub data set or what has an address, if it is not downloaded yet. Other sources need no download.

    Raises:
        PreflightError: the download fails, or is needed but `offline` forbids it.
    """
    with as_preflight_error(spec):
        if spec.uri is not None and not is_on_hub(spec.uri):
            addresses.fetch(_address(spec, spec.uri), base=base, offline=offline, progress=progress)
        elif spec.uri is not None:
            hub.fetch(*_hub_files(spec, spec.uri), base=base, offline=offline, progress=progress)


def find_damage(spec: SourceSpec, *, base: Path, offline: bool) -> str | None:
    """Return which file of a complete download is missing or has changed, if `fetch` would download it again, or None.

    The message names the file.
    """
    if spec.uri is None or offline or is_offline():
        return None
    try:
        if is_on_hub(spec.uri):
            hub.cached(*_hub_files(spec, spec.uri), base=base)
        else:
            addresses.cached(_address(spec, spec.uri), base=base)
    except DamagedDownloadError as error:
        return error.problem
    except PreflightError:  # not downloaded
        return None
    return None


def download_folder(spec: SourceSpec, *, base: Path) -> Path | None:
    """Return the folder of a source's download, which need not exist, or None if it has none or it is not known."""
    if spec.uri is None:
        return None
    if is_on_hub(spec.uri):
        return hub.download_folder(_hub_files(spec, spec.uri)[0], base=base)
    return addresses.download_folder(_address(spec, spec.uri), base=base)


def resolve_revision(spec: SourceSpec, *, base: Path, offline: bool) -> str | None:
    """Return the commit of a hub data set: of its downloaded copy, else the one a download would get. None for others.

    Raises:
        PreflightError: the hub cannot be reached, or `offline` and the data set is not downloaded.
    """
    if spec.uri is None or not is_on_hub(spec.uri):
        return None
    source, selection = _hub_files(spec, spec.uri)
    if offline or hub.is_cached(source, selection, base=base):
        return hub.cached(source, selection, base=base).commit
    return hub.check(source).commit


def is_available_offline(spec: SourceSpec, *, base: Path) -> bool:
    """Return whether the source can be read without the network; a remote one can once it is downloaded."""
    if spec.uri is not None and not is_on_hub(spec.uri):
        return addresses.is_cached(_address(spec, spec.uri), base=base)
    return spec.uri is None or hub.is_cached(*_hub_files(spec, spec.uri), base=base)


def check_download(spec: SourceSpec, *, base: Path) -> None:
    """Compare the content of what was downloaded for a source with its record, before it is loaded.

    Raises:
        PreflightError: a file is damaged or missing; the message names it.
    """
    if spec.uri is not None and is_on_hub(spec.uri):
        hub.cached(*_hub_files(spec, spec.uri), base=base, are_loaded=True)
    elif spec.uri is not None:
        addresses.cached(_address(spec, spec.uri), base=base, are_loaded=True)


def digest(spec: SourceSpec, *, base: Path, lines: LineFilter | None = None) -> str:
    """Return the sha256 (hex) of a source: names and contents of local files, or uri and revision of a hub data set,
    or name and content of a file with an address.

    In a folder, yaml and csv files count too, since they describe data, such as the tasks of a bundle. Settings such
    as `column` do not count. The digest of an unchanged file (path, size, time) is remembered under `base`. The hub is
    not contacted. Of small local files, only the lines that `lines` accepts count.

    Raises:
        PreflightError: a path or pattern matches nothing.
    """
    if spec.uri is not None and not is_on_hub(spec.uri):
        return _address(spec, spec.uri).digest
    if spec.uri is not None:
        return _sha256(f"{spec.uri}@{spec.revision or DEFAULT_REVISION}")
    if spec.builtin == "python-stdlib":
        return stdlib_corpus.corpus_digest()
    if spec.builtin == "spelling":
        return _sha256("\n".join(words.builtin_words()))
    files = (*resolve_files(spec, base=base), *_description_files(spec))
    lines = lines if are_small(files) else None
    with remembered_digests(base / MEMORY_FILE) as digest_of:
        parts = [f"{name}\0{digest_of(file, lines)}" for name, file in zip(_relative_names(files), files, strict=True)]
    return _sha256("\n".join(parts))


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
                hub.check_download(*_hub_files(spec, spec.uri), base=base, offline=offline)
            else:
                addresses.check(_address(spec, spec.uri), base=base, offline=offline)
            return
        for path in resolve_files(spec, base=base):
            check_file(path)
    if spec.builtin is not None:
        digest(spec, base=base)


@contextmanager
def as_preflight_error(spec: SourceSpec) -> Iterator[None]:
    """Raise errors of reading a source as preflight errors whose message names the source."""
    try:
        yield
    except (PreflightError, StageError) as error:
        text, name = str(error), f"source `{spec.name}`"
        if name not in text:
            text = f"{name}: {text}" if spec.uri is not None and spec.uri in text else f"{describe(spec)}: {text}"
        raise PreflightError(text) from error


def _hub_files(spec: SourceSpec, uri: str) -> tuple[HubSource, FileSelection]:
    return HubSource.parse(uri, spec.revision), _selection(spec)


def _address(spec: SourceSpec, uri: str) -> Address:
    return Address(uri, spec.sha256, _selection(spec))


def _selection(spec: SourceSpec) -> FileSelection:
    return FileSelection(max_files=spec.max_files, validation_shard=spec.validation_shard)


def _description_files(spec: SourceSpec) -> list[Path]:
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
