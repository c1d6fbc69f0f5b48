"""Lock a stage folder, so that only one run computes it at a time. The lock ends with the processes that hold it.

The lock is a `flock` on `<stage folder>/lock`. The child process inherits the open file, so the stage stays locked if
the child outlives a killed parent. Once all holders have ended, the operating system frees the lock. The text in the
file only names them.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

from nanochat.errors import LockError
from nanochat.runner.store.provenance import host_name, is_alive, process_started
from nanochat.storage.layout import StageFolder

_POLL_SECONDS = 0.1
ORPHAN_WAIT_SECONDS = 30.0
"""How long to wait for a child process whose parent was killed. It notices that, and ends by itself."""
_UNNAMED_WAIT_SECONDS = 1.0
"""An empty lock file means that `is_locked` is probing. Wait this long before treating it as held."""


class Owner(BaseModel):
    """The process that holds, or last held, a lock."""

    host: str
    pid: int
    started: float
    child_pid: int | None = None


@dataclass(frozen=True)
class StageLock:
    """A held lock. The child process inherits `descriptor`."""

    descriptor: int
    taken_over_from: Owner | None

    def name_child(self, child_pid: int) -> None:
        """Write the child's pid into the lock file, for the error message of other runs."""
        _write_owner(self.descriptor, child_pid)


@contextmanager
def stage_lock(folder: StageFolder, *, orphan_wait_seconds: float = ORPHAN_WAIT_SECONDS) -> Iterator[StageLock]:
    """Hold the lock of a stage folder, creating the folder.

    If the lock is held by a child whose parent was killed, wait `orphan_wait_seconds` for it to end. The message of
    the LockError names the host and pid of the run that holds the lock.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    descriptor = _acquire(folder, orphan_wait_seconds)
    try:
        previous = _read_owner(folder.lock)
        _write_owner(descriptor, None)
        yield StageLock(descriptor, previous)
    finally:
        os.ftruncate(descriptor, 0)
        os.close(descriptor)


def is_locked(folder: StageFolder) -> bool:
    """Return whether a process holds the lock of a stage folder right now."""
    try:
        descriptor = os.open(folder.lock, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def claims(base: Path, *, to_delete: bool = False) -> Iterator[None]:
    """Prevent `gc` from deleting a stage between its cache look-up and its entry in `run.json`.

    Runs share this lock; with `to_delete`, `gc` holds it exclusively.
    """
    base.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(base / "claims.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if to_delete else fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def _acquire(folder: StageFolder, orphan_wait_seconds: float) -> int:
    began = time.monotonic()
    while True:
        folder.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder.lock, os.O_RDWR | os.O_CREAT, 0o644)
        if _try_lock(descriptor):
            if _is_current(descriptor, folder.lock):
                return descriptor
            os.close(descriptor)
            continue
        os.close(descriptor)
        owner = _read_owner(folder.lock)
        wait = _UNNAMED_WAIT_SECONDS if owner is None else orphan_wait_seconds if _is_orphaned(owner) else 0.0
        if time.monotonic() - began >= wait:
            raise _held_by(folder, owner)
        time.sleep(_POLL_SECONDS)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_current(descriptor: int, path: Path) -> bool:
    """Return whether the locked file is still the one at the path. `gc` may have deleted it in the meantime."""
    try:
        current = path.stat()
    except FileNotFoundError:
        return False
    locked = os.fstat(descriptor)
    return (current.st_dev, current.st_ino) == (locked.st_dev, locked.st_ino)


def _is_orphaned(owner: Owner) -> bool:
    return owner.host == host_name() and not is_alive(owner.pid, owner.started)


def _held_by(folder: StageFolder, owner: Owner | None) -> LockError:
    what = f"stage {folder.stage} ({folder.path})"
    if owner is not None:
        pid = owner.child_pid if _is_orphaned(owner) and owner.child_pid else owner.pid
        what += f": host {owner.host}, pid {pid}"
    return LockError(f"another run holds {what}; wait for it to end, then run the same command")


def _read_owner(path: Path) -> Owner | None:
    try:
        return Owner.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _write_owner(descriptor: int, child_pid: int | None) -> None:
    owner = Owner(host=host_name(), pid=os.getpid(), started=process_started(), child_pid=child_pid)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, owner.model_dump_json().encode(), 0)
