"""Downloads the files of an object store (`s3://`, `gs://`) with fsspec.

Credentials come from the environment or the files that other tools use, never from a recipe. Each object is continued
where it was cut off if it has not changed since.
"""

from __future__ import annotations

import glob
import itertools
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from nanochat.data.files.selection.data_file import DataFile
from nanochat.data.files.selection.file_choice import list_reasons
from nanochat.data.files.selection.file_selection import FileSelection
from nanochat.data.places.file_names import find_conflict, show, why_refused
from nanochat.data.places.transfer import Progress, check_room
from nanochat.errors import PreflightError

SCHEMES = ("s3://", "gs://")
_CLIENT_ERRORS = ("botocore.exceptions:BotoCoreError", "aiohttp:ClientError", "google.auth.exceptions:GoogleAuthError")
"""Errors of the clients that are not of the class OSError."""
_CHUNK_BYTES = 1 << 22


def check(uri: str, selection: FileSelection) -> None:
    """Check that an object store has files to download.

    Raises:
        PreflightError: the message says what is missing.
    """
    with _errors(uri):
        _list(uri, selection)


def download(
    uri: str, selection: FileSelection, parts: Path, *, progress: Progress | None
) -> dict[PurePosixPath, Path]:
    """Download what a `uri` names to the folder `parts`. Return the path of each file by its name below the `uri`.

    Raises:
        PreflightError: something is missing, or does not fit on the disk. What was received is kept.
        OSError: a file cannot be written.
    """
    with _errors(uri):
        system, names = _list(uri, selection)
        sizes = {name: _checked_size(name, system.size(path)) for name, path in names.items()}
        # A changed object has another key, so that its bytes are not mixed with older ones.
        targets = {name: parts / system.ukey(path) for name, path in names.items()}
    total = sum(sizes.values())
    have = {name: path.stat().st_size if path.exists() else 0 for name, path in targets.items()}
    for name in [name for name, size in have.items() if size > sizes[name]]:
        targets[name].unlink()
        have[name] = 0
    check_room(uri, parts, total - sum(have.values()), advice="lower `max_files`, ")
    for name, path in names.items():
        with _errors(uri):
            source = system.open(path, "rb")
        with source, targets[name].open("ab") as out:
            source.seek(have[name])
            while have[name] < sizes[name]:
                with _errors(uri):
                    block = source.read(min(_CHUNK_BYTES, sizes[name] - have[name]))
                if not block:
                    raise PreflightError(f"{uri}: {name} ends too early; the same command continues")
                out.write(block)
                have[name] += len(block)
                if progress is not None:
                    progress(sum(have.values()), total)
    return targets


def _list(uri: str, selection: FileSelection) -> tuple[Any, dict[PurePosixPath, str]]:
    """Return the file system, and the path of each file to download by its name below the `uri`."""
    import fsspec  # planning imports this module

    try:
        system, path = fsspec.core.url_to_fs(uri)
    except ImportError as error:
        raise PreflightError(f"{uri}: needs another package ({error}); `pip install 'nanochat-run[s3]'`") from error
    if not glob.has_magic(path) and system.isfile(path):
        _check_names([PurePosixPath(path).name])
        return system, {PurePosixPath(PurePosixPath(path).name): path}
    listed = system.glob(path, detail=True) if glob.has_magic(path) else system.find(path, detail=True)
    parts = PurePosixPath(path).parts
    root = PurePosixPath(*itertools.takewhile(lambda part: not glob.has_magic(part), parts))
    files = {}
    for name, entry in listed.items():
        below = PurePosixPath(name).relative_to(root)
        if entry["type"] == "file" and (".." in below.parts or not any(part[0] == "." for part in below.parts)):
            files[below] = (name, _checked_size(below, entry["size"]))
    _check_names(map(str, files))
    found = [DataFile(below, below, size) for below, (_, size) in files.items()]
    choice = selection.select(found, use="text")
    paths = sorted({*choice.paths, *selection.select(found, use="rows").paths})
    if not paths:
        reasons = f"; left out: {list_reasons(choice.left_out)}" if choice.left_out else ""
        raise PreflightError(f"{uri}: no data file there{reasons}; check the address")
    if (name := find_conflict(map(str, paths))) is not None:
        raise ValueError(f"{show(name)} is a file as well as a folder")
    return system, {below: files[below][0] for below in paths}


def _check_names(names: Iterable[str]) -> None:
    """Raise ValueError if an object has a name that cannot be the name of a file below a folder."""
    for name in names:
        if (reason := why_refused(name)) is not None:
            raise ValueError(f"{show(name)}: {reason}")


def _checked_size(name: PurePosixPath, size: object) -> int:
    if not isinstance(size, int) or size < 0:
        raise ValueError(f"{show(str(name))} has the size {size!r}")
    return size


@contextmanager
def _errors(uri: str) -> Iterator[None]:
    """Raise the errors of an object store as preflight errors."""
    modules = [(sys.modules.get(module), kind) for module, _, kind in (name.partition(":") for name in _CLIENT_ERRORS)]
    kinds = tuple(getattr(module, kind) for module, kind in modules if module is not None)
    try:
        yield
    except FileNotFoundError as error:
        raise PreflightError(f"{uri}: there is no such file or bucket; check the address") from error
    except (OSError, ValueError, *kinds) as error:
        hint = "check the network, and the credentials in the environment or in the files of the store's own tools"
        raise PreflightError(f"{uri}: cannot be read ({type(error).__name__}: {error}); {hint}") from error
