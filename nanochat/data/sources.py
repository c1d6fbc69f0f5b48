"""Sources of documents and task rows: their files, their digests, and whether they can be read.

A source is local, a data set of the hub, or built in. Planning a run imports this module, so it imports nothing heavy.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanochat.data.builtin import stdlib_corpus, words
from nanochat.data.files.digests import MEMORY_FILE, remembered_digests
from nanochat.data.files.file_selection import FileSelection
from nanochat.data.files.readers import DATA_SUFFIXES, check_file
from nanochat.data.hub import hub
from nanochat.data.hub.download import Progress
from nanochat.errors import PreflightError, StageError

DEFAULT_VALIDATION_FRAC = 0.01
_DESCRIPTION_SUFFIXES = (".yaml", ".csv")


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """A source of the plan. Exactly one of `uri`, `path` and `builtin` is set."""

    name: str
    uri: str | None = None
    revision: str | None = None
    path: tuple[str, ...] | None = None
    builtin: Literal["python-stdlib", "spelling"] | None = None
    column: str = "text"
    max_files: int | None = None
    max_document_chars: int | None = None
    validation_shard: str | None = None
    validation_hash_frac: float | None = None


def describe(spec: SourceSpec) -> str:
    """Return the source's name and origin, for messages."""
    origin = spec.uri or spec.builtin or ", ".join(spec.path or ())
    return f"source `{spec.name}` ({origin})"


def validation_frac(spec: SourceSpec) -> float:
    """Return the fraction of documents that a hash holds out if the source names no validation shard."""
    if spec.validation_hash_frac is not None:
        return spec.validation_hash_frac
    return stdlib_corpus.VALIDATION_FRAC if spec.builtin == "python-stdlib" else DEFAULT_VALIDATION_FRAC


def resolve_files(spec: SourceSpec, *, base: Path) -> tuple[Path, ...]:
    """Return the files of a source in their fixed order; none for a built-in one.

    Local files are sorted, and a folder means the data files in it. For a hub data set, these are the files of
    the downloaded copy. `max_files` keeps the first files, and the validation shard in addition.

    Raises:
        PreflightError: a path or pattern matches nothing, or the hub data set is not downloaded.
    """
    if spec.builtin is not None:
        return ()
    if spec.uri is not None:
        return hub.cached(*_hub_files(spec, spec.uri), base=base).files
    assert spec.path is not None, f"source {spec.name} has no origin"
    files = sorted({file for pattern in spec.path for file in _match(spec.name, pattern)})
    return tuple(_selection(spec).select(files))


def fetch(spec: SourceSpec, *, base: Path, offline: bool, progress: Progress | None = None) -> None:
    """Download a hub data set if it is not downloaded yet. Other sources need no download.

    Raises:
        PreflightError: the download fails, or is needed but `offline` forbids it.
    """
    if spec.uri is not None:
        hub.fetch(*_hub_files(spec, spec.uri), base=base, offline=offline, progress=progress)


def resolve_revision(spec: SourceSpec, *, base: Path, offline: bool) -> str | None:
    """Return the commit of a hub data set: of its downloaded copy, else the one a download would get. None for others.

    Raises:
        PreflightError: the hub cannot be reached, or `offline` and the data set is not downloaded.
    """
    if spec.uri is None:
        return None
    source, selection = _hub_files(spec, spec.uri)
    if offline or hub.is_cached(source, selection, base=base):
        return hub.cached(source, selection, base=base).commit
    return hub.check(source)


def is_available_offline(spec: SourceSpec, *, base: Path) -> bool:
    """Return whether the source can be read without the network; a hub data set can once it is downloaded."""
    return spec.uri is None or hub.is_cached(*_hub_files(spec, spec.uri), base=base)


def digest(spec: SourceSpec, *, base: Path) -> str:
    """Return the sha256 (hex) of a source: names and contents of local files, or uri and revision of a hub data set.

    In a folder, yaml and csv files count too, since they describe data, such as the tasks of a bundle. Settings such
    as `column` do not count. The digest of an unchanged file (path, size, time) is remembered under `base`. The hub is
    not contacted.

    Raises:
        PreflightError: a path or pattern matches nothing.
    """
    if spec.uri is not None:
        return _sha256(f"{spec.uri}@{spec.revision or hub.DEFAULT_REVISION}")
    if spec.builtin == "python-stdlib":
        return stdlib_corpus.corpus_digest()
    if spec.builtin == "spelling":
        return _sha256("\n".join(words.builtin_words()))
    files = (*resolve_files(spec, base=base), *_description_files(spec))
    with remembered_digests(base / MEMORY_FILE) as digest_of:
        parts = [f"{name}\0{digest_of(file)}" for name, file in zip(_relative_names(files), files, strict=True)]
    return _sha256("\n".join(parts))


def content_digest(spec: SourceSpec, *, base: Path) -> str:
    """Return the sha256 (hex) of a source as `digest` does, but for a hub data set that of the downloaded commit.

    Raises:
        PreflightError: the source is not on this machine.
    """
    if spec.uri is None:
        return digest(spec, base=base)
    return _sha256(f"{spec.uri}@{resolve_revision(spec, base=base, offline=True)}")


def check_source(spec: SourceSpec, base: Path, offline: bool, *, columns: Sequence[str] = ()) -> None:
    """Check before a run that a source can be read, and that its parquet files have `columns`.

    Raises:
        PreflightError: the message says what is missing and where.
    """
    with as_preflight_error(spec):
        if spec.uri is not None and not offline and not is_available_offline(spec, base=base):
            hub.check(_hub_files(spec, spec.uri)[0])
            return
        for path in resolve_files(spec, base=base):
            check_file(path, columns)
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


def _hub_files(spec: SourceSpec, uri: str) -> tuple[hub.HubSource, FileSelection]:
    return hub.HubSource.parse(uri, spec.revision), _selection(spec)


def _selection(spec: SourceSpec) -> FileSelection:
    return FileSelection(max_files=spec.max_files, validation_shard=spec.validation_shard)


def _match(name: str, pattern: str) -> list[Path]:
    """Return the files of a path, folder or glob of source `name`, in no fixed order."""
    path = Path(pattern).expanduser()
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.suffix in DATA_SUFFIXES and file.is_file()]
        problem = f"the folder holds no {', '.join(DATA_SUFFIXES)} file"
    elif glob.has_magic(pattern):
        matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 -- Path.glob takes no absolute pattern
        files = [Path(file) for file in matches if Path(file).is_file()]
        problem = "no file matches the pattern"
    else:
        files = [path] if path.is_file() else []
        problem = "no such file"
    if not files:
        raise PreflightError(f"source `{name}`: {pattern}: {problem}")
    return files


def _description_files(spec: SourceSpec) -> list[Path]:
    folders = [Path(pattern).expanduser() for pattern in spec.path or ()]
    files = {file for folder in folders if folder.is_dir() for file in folder.rglob("*")}
    return sorted(file for file in files if file.suffix in _DESCRIPTION_SUFFIXES and file.is_file())


def _relative_names(files: Sequence[Path]) -> list[str]:
    """Return the files' names relative to the innermost folder that contains them all."""
    folders = [file.absolute().parent for file in files]
    candidates = (folders[0], *folders[0].parents)
    shared = next(folder for folder in candidates if all(other.is_relative_to(folder) for other in folders))
    return [file.absolute().relative_to(shared).as_posix() for file in files]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
