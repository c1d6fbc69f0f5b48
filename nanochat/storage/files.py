"""Writes whole files and folders so that they appear complete or not at all, and hashes and measures them.

Everything that the product writes in one piece is written through this module. A writer fills a scratch file or folder
beside the target and then renames it. A reader sees the old content or the new content, never a part of it. By default
the new content also survives a power cut: it is flushed to disk before the rename, and the rename after it. The name of
a scratch file carries the process id, so two processes never write to the same one.

Not here: files that grow line by line (`storage.series`, logs) and downloads that are resumed (`data.places`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from nanochat.storage.file_errors import DISK_FULL, require_file
from nanochat.storage.locking import waiting_lock

_SCRATCH_PREFIX = ".writing-"
_MAX_PID_DIGITS = 10
_READ_BYTES = 1 << 20
_MAX_THREADS = 8


@contextmanager
def atomic_write(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield the path of a scratch file that replaces `path` when the block ends without an exception.

    The block must create the scratch file. Its name ends in the name of `path`, for writers that look at the suffix.
    Missing parent folders are created. With `durable=False` nothing is flushed to disk, for files that need not survive
    a power cut. After an exception the scratch file is deleted and `path` is as it was.
    """
    make_folder(path.parent, durable=durable)
    scratch = _scratch_path(path)
    try:
        yield scratch
        move_into_place(scratch, path, durable=durable)
    finally:
        scratch.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace the content of a file by `text`, encoded as UTF-8; see `atomic_write`.

    Bytes of file names that are not UTF-8 are written as escapes such as `\\udce9`.
    """
    write_bytes(path, text.encode(errors="backslashreplace"), durable=durable)


def write_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Replace the content of a file by `content`; see `atomic_write`."""
    with atomic_write(path, durable=durable) as scratch:
        scratch.write_bytes(content)


def read_file(path: Path) -> bytes:
    """Return the content of a file, without waiting for a writer if a pipe has taken its place."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    require_file(descriptor, path)
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def move_into_place(scratch: Path, path: Path, *, durable: bool = True) -> None:
    """Rename a complete file to `path` in the same folder, replacing the file there."""
    if durable:
        sync(scratch)
    scratch.replace(path)
    if durable:
        sync(path.parent)


def make_folder(path: Path, *, durable: bool = True) -> None:
    """Create a folder and the folders above it that are missing. Their names are flushed to disk, unless not `durable`.

    Without that, a file that was flushed can be lost in a power cut, together with the new folder above it.
    """
    if path.is_dir():
        return
    make_folder(path.parent, durable=durable)
    path.mkdir(exist_ok=True)
    if durable:
        sync(path.parent)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield an empty scratch folder that becomes `target` when the block ends without an exception.

    Every file in it is flushed to disk before the rename, and the parent folder after it. A folder at `target` is
    replaced. Scratch folders that a killed process left for the same target are deleted.
    """
    make_folder(target.parent)
    delete_leftovers(target.parent, target.name)
    scratch, old = _scratch_path(target), _scratch_path(target, "old-")
    scratch.mkdir()
    try:
        yield scratch
        for path in sorted(scratch.rglob("*")):
            sync(path)
        sync(scratch)
        if target.exists():
            target.rename(old)  # a kill before the next line leaves no target: the old content is lost
        scratch.rename(target)
        sync(target.parent)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Create a folder, and keep other processes that also call this from working in it at the same time."""
    make_folder(folder)
    with waiting_lock(folder / ".lock"):
        yield


def delete_scratch(folder: Path) -> None:
    """Delete every scratch file and folder under `folder`. The caller must be the only one that writes there."""
    for scratch in sorted(folder.rglob(f"{_SCRATCH_PREFIX}*")):
        delete(scratch)


def delete_leftovers(folder: Path, name: str | None = None) -> None:
    """Delete the scratch files and folders in a folder, but not below it, that killed processes left.

    With `name`, only those of this target are deleted, including those of this process.
    """
    for leftover in folder.glob(f"{_SCRATCH_PREFIX}*"):
        pid, target = _parse_scratch_name(leftover)
        is_own = name is not None and pid == os.getpid()
        if name in (None, target.removeprefix("old-")) and (is_own or _has_ended(pid)):
            delete(leftover)


def find_leftovers(folder: Path) -> list[Path]:
    """Return the scratch files and folders in a folder and below it that killed processes of this machine left.

    A process that writes there on another machine cannot be seen. The caller must hold the lock of the folder.
    """
    return [path for path in sorted(folder.rglob(f"{_SCRATCH_PREFIX}*")) if _has_ended(_parse_scratch_name(path)[0])]


def find_write_problem(folder: Path) -> str | None:
    """Create a folder, and a file in it that is deleted at once. Return why that fails, or None if it works.

    Trying is the only reliable check: permissions do not show that a file system is read-only. A full disk is not a
    problem here: the command that fills it reports that.
    """
    import tempfile  # here, because reading a recipe imports this module

    try:
        make_folder(folder)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        if error.errno in DISK_FULL:
            return None
        return f"{error.strerror}: {error.filename or folder}"


def delete(path: Path) -> None:
    """Delete a file, a link, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of_file(path: Path) -> str:
    """Return the sha256 of a file's content in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_pieces(path: Path, piece_bytes: int) -> list[str]:
    """Return the sha256 in hex of each piece of a file; the last one may be shorter. Several threads hash the pieces.

    Hashing releases the interpreter lock, so on n cores this is about n times as fast as `sha256_of_file`, up to
    `_MAX_THREADS` times.
    """
    starts = range(0, path.stat().st_size, piece_bytes)
    threads = max(1, min(len(starts), os.cpu_count() or 1, _MAX_THREADS))
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(partial(_sha256_of_piece, path, piece_bytes), starts))


def _sha256_of_piece(path: Path, piece_bytes: int, start: int) -> str:
    digest, buffer, left = hashlib.sha256(), memoryview(bytearray(_READ_BYTES)), piece_bytes
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while left and (count := file.readinto(buffer[: min(left, _READ_BYTES)])):
            digest.update(buffer[:count])
            left -= count
    return digest.hexdigest()


def folder_bytes(folder: Path) -> int:
    """Return the total size of the files under a folder, without those that symbolic links point to."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _scratch_path(path: Path, role: str = "") -> Path:
    return path.with_name(f"{_SCRATCH_PREFIX}{os.getpid()}-{role}{path.name}")


def _parse_scratch_name(scratch: Path) -> tuple[int | None, str]:
    """Return the process id, and the rest of the name, which ends in the name of the target."""
    pid, _, target = scratch.name.removeprefix(_SCRATCH_PREFIX).partition("-")
    return int(pid) if pid.isdecimal() and len(pid) < _MAX_PID_DIGITS else None, target


def _has_ended(pid: int | None) -> bool:
    import psutil  # here, because reading a recipe imports this module

    return pid is not None and not psutil.pid_exists(pid)
