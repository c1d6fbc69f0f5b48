"""Sources of documents and examples, resolved to files with digests; local, hub or built in.

Light on purpose: planning computes digests here, so nothing heavy is imported before files are read.
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
from nanochat.data.files.digests import MEMORY_FILE, FileDigests
from nanochat.data.files.file_selection import FileSelection
from nanochat.data.files.readers import DATA_SUFFIXES, check_file
from nanochat.data.hub import hub
from nanochat.data.hub.download import Progress
from nanochat.errors import PreflightError, StageError

DEFAULT_VALIDATION_FRAC = 0.01
_DESCRIPTION_SUFFIXES = (".yaml", ".csv")


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """A source as the plan fixes it: exactly one of `uri`, `path`, `builtin` is set."""

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


def validation_frac(spec: SourceSpec) -> float:
    """Return the share of documents that a hash holds out, where no shard is named."""
    if spec.validation_hash_frac is not None:
        return spec.validation_hash_frac
    return stdlib_corpus.VALIDATION_FRAC if spec.builtin == "python-stdlib" else DEFAULT_VALIDATION_FRAC


def resolve_files(spec: SourceSpec, *, base: Path) -> tuple[Path, ...]:
    """Return the files of a source in their fixed order; none for a built-in one.

    Local ones are in sorted order, and a folder stands for the data files in it. Of a hub data set, the files of the
    downloaded copy are returned. `max_files` keeps the first so many and the validation shard.

    Raises:
        PreflightError: a path or pattern matches nothing, or the hub data set is not downloaded.
    """
    if spec.builtin is not None:
        return ()
    if spec.uri is not None:
        return hub.cached(hub.HubSource.parse(spec.uri, spec.revision), _selection(spec), base=base).files
    assert spec.path is not None, f"source {spec.name} has no origin"
    found = sorted({file for pattern in spec.path for file in _match(spec.name, pattern)})
    return tuple(_selection(spec).pick(found))


def fetch(spec: SourceSpec, *, base: Path, offline: bool, progress: Progress | None = None) -> None:
    """Download a hub data set where it is not downloaded yet; other sources are there already.

    Raises:
        PreflightError: it cannot be had, or `offline` and it is not downloaded.
    """
    if spec.uri is not None:
        source = hub.HubSource.parse(spec.uri, spec.revision)
        hub.fetch(source, _selection(spec), base=base, offline=offline, progress=progress)


def resolve_revision(spec: SourceSpec, *, base: Path, offline: bool) -> str | None:
    """Return the commit that a hub data set is pinned to, or would be if it were downloaded now; None for others.

    Raises:
        PreflightError: the hub cannot be asked, or `offline` and it is not downloaded.
    """
    if spec.uri is None:
        return None
    source = hub.HubSource.parse(spec.uri, spec.revision)
    if offline or hub.is_cached(source, _selection(spec), base=base):
        return hub.cached(source, _selection(spec), base=base).commit
    return hub.check(source)


def digest(spec: SourceSpec, *, base: Path) -> str:
    """Return the sha256 (hex) of what a source holds: names and contents of local files, uri and revision of the hub.

    Of a folder, its yaml and csv files count too: they describe data, such as the tasks of a bundle. Settings such as
    `column` are not in it. Contents of unchanged files (path, size, time) are hashed once and
    remembered under `base`. The hub is not asked.

    Raises:
        PreflightError: a path or pattern matches nothing.
    """
    if spec.uri is not None:
        return _sha256(f"{spec.uri}@{spec.revision or hub.DEFAULT_REVISION}")
    if spec.builtin == "python-stdlib":
        return stdlib_corpus.describe().digest
    if spec.builtin == "spelling":
        return _sha256("\n".join(words.builtin_words()))
    files = (*resolve_files(spec, base=base), *_descriptions(spec))
    with FileDigests(base / MEMORY_FILE) as digests:
        parts = [f"{name}\0{digests.of(file)}" for name, file in zip(_names(files), files, strict=True)]
    return _sha256("\n".join(parts))


def content_digest(spec: SourceSpec, *, base: Path) -> str:
    """Return the sha256 (hex) of what a source holds, of a hub data set that of the commit which is downloaded.

    Raises:
        PreflightError: the source is not here.
    """
    if spec.uri is None:
        return digest(spec, base=base)
    return _sha256(f"{spec.uri}@{resolve_revision(spec, base=base, offline=True)}")


def check_source(spec: SourceSpec, base: Path, offline: bool, *, columns: Sequence[str] = ()) -> None:
    """Check before any work starts that a source can be read, and that its parquet files have `columns`.

    Raises:
        PreflightError: it cannot; the message says what is missing and where.
    """
    if spec.uri is not None and not offline:
        source = hub.HubSource.parse(spec.uri, spec.revision)
        if not hub.is_cached(source, _selection(spec), base=base):
            with as_preflight_error(spec):
                hub.check(source)
            return
    with as_preflight_error(spec):
        for path in resolve_files(spec, base=base):
            check_file(path, columns)
    if spec.builtin is not None:
        digest(spec, base=base)


def is_available_offline(spec: SourceSpec, *, base: Path) -> bool:
    """Return whether the source can be read without the network: a hub data set only once it is downloaded."""
    return spec.uri is None or hub.is_cached(hub.HubSource.parse(spec.uri, spec.revision), _selection(spec), base=base)


def describe(spec: SourceSpec) -> str:
    """Return what the source is, for messages: its name and origin."""
    origin = spec.uri or spec.builtin or ", ".join(spec.path or ())
    return f"source `{spec.name}` ({origin})"


@contextmanager
def as_preflight_error(spec: SourceSpec) -> Iterator[None]:
    """Turn what reading a source raises into a finding of preflight that names the source."""
    try:
        yield
    except (PreflightError, StageError) as error:
        text, name = str(error), f"source `{spec.name}`"
        if name not in text:
            text = f"{name}: {text}" if spec.uri is not None and spec.uri in text else f"{describe(spec)}: {text}"
        raise PreflightError(text) from error


def _selection(spec: SourceSpec) -> FileSelection:
    return FileSelection(max_files=spec.max_files, validation_shard=spec.validation_shard)


def _match(name: str, pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        found = [file for file in path.rglob("*") if file.suffix in DATA_SUFFIXES and file.is_file()]
        problem = f"the folder holds no {', '.join(DATA_SUFFIXES)} file"
    elif glob.has_magic(pattern):
        matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 -- Path.glob takes no absolute pattern
        found = [Path(file) for file in matches if Path(file).is_file()]
        problem = "no file matches the pattern"
    else:
        found = [path] if path.is_file() else []
        problem = "no such file"
    if not found:
        raise PreflightError(f"source `{name}`: {pattern}: {problem}")
    return found


def _descriptions(spec: SourceSpec) -> list[Path]:
    folders = [Path(pattern).expanduser() for pattern in spec.path or ()]
    found = {file for folder in folders if folder.is_dir() for file in folder.rglob("*")}
    return sorted(file for file in found if file.suffix in _DESCRIPTION_SUFFIXES and file.is_file())


def _names(files: Sequence[Path]) -> list[str]:
    """Return the files' names relative to the folder that holds them all."""
    folders = [file.absolute().parent for file in files]
    candidates = (folders[0], *folders[0].parents)
    shared = next(folder for folder in candidates if all(other.is_relative_to(folder) for other in folders))
    return [file.absolute().relative_to(shared).as_posix() for file in files]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
