"""Locks on open files. The operating system frees a lock when the processes that hold it end, however they end.

A lock shows whether a process works in a folder that other containers or machines share, which a process id cannot. On
a network file system that depends on the server: NFS passes locks on to the other machines (unless it is mounted with
`nolock`) and frees those of a machine that crashed when it misses it. A file system without locks is refused, because
two runs could damage each other's files there.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nanochat.errors import PreflightError
from nanochat.storage.file_errors import require_file


def lock_file(descriptor: int, path: Path, *, shared: bool = False, wait: bool = True) -> bool:
    """Lock an open file (`flock`) and return whether that worked; with `wait` it always does. Closing it unlocks it.

    Processes can hold a `shared` lock together. `path` is for the message of the PreflightError that is raised if the
    file system has no locks.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        raise PreflightError(
            f"{path} cannot be locked ({error.strerror}): its file system must support `flock`, or two runs could "
            "damage each other's files; set NANOCHAT_BASE_DIR to a folder on a local disk"
        ) from error
    return True


@contextmanager
def waiting_lock(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock of a file, which is created, and wait for it. See `lock_file`."""
    descriptor = open_lock(path)
    try:
        lock_file(descriptor, path, shared=shared)
        yield
    finally:
        os.close(descriptor)


def open_lock(path: Path) -> int:
    """Return the descriptor of a lock file, which is created. NFS shares locks only of files that are open to read."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    require_file(descriptor, path)
    return descriptor


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder, waiting for it, without a file for it. The folder is created.

    A network file system may have no locks on folders; nothing is locked there. So this is for short work that is only
    done twice, or fails and is repeated, if two processes do it at once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
