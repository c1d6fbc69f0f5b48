"""One runner per stage folder: an advisory file lock that dies with its holders.

The lock is a `flock` on `<stage folder>/lock`. The child process inherits the open file, so the stage stays locked
while a child outlives a killed parent. A lock whose holders are all dead is free by itself; the text in the file only
says who they were.
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
_NAMELESS_WAIT_SECONDS = 1.0
"""A lock whose holder has no name is held for the moment in which somebody asks whether it is held."""


class Owner(BaseModel):
    """Who holds, or last held, a lock."""

    host: str
    pid: int
    started: float
    child_pid: int | None = None


@dataclass(frozen=True)
class StageLock:
    """A held lock. `descriptor` is to be inherited by the child process."""

    descriptor: int
    taken_over_from: Owner | None

    def name_child(self, child_pid: int) -> None:
        """Write the child's pid into the lock, for whoever finds it held."""
        _write_owner(self.descriptor, child_pid)


@contextmanager
def stage_lock(folder: StageFolder, *, orphan_wait_seconds: float = ORPHAN_WAIT_SECONDS) -> Iterator[StageLock]:
    """Hold the lock of a stage folder, creating the folder.

    A child that outlived its parent is waited for, since it notices and ends by itself. Raises LockError naming host
    and pid where somebody else lives and holds it.
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
    """Return whether somebody holds the lock of a stage folder right now."""
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
    """Hold off gc while a stage is found in the cache and named in a run; `to_delete` holds off those who do that."""
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
        patience = _NAMELESS_WAIT_SECONDS if owner is None else orphan_wait_seconds if _is_orphaned(owner) else 0.0
        if time.monotonic() - began >= patience:
            raise _held_by(folder, owner)
        time.sleep(_POLL_SECONDS)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_current(descriptor: int, path: Path) -> bool:
    """Return whether the locked file is still the one at the path (gc may have removed it meanwhile)."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def _is_orphaned(owner: Owner) -> bool:
    return owner.host == host_name() and not is_alive(owner.pid, owner.started)


def _held_by(folder: StageFolder, owner: Owner | None) -> LockError:
    what = f"stage {folder.stage} ({folder.path})"
    if owner is None:
        return LockError(f"another run holds {what}; wait for it to end, then run the same command")
    pid = owner.child_pid if _is_orphaned(owner) and owner.child_pid else owner.pid
    return LockError(
        f"another run holds {what}: host {owner.host}, pid {pid}; wait for it to end, then run the same command"
    )


def _read_owner(path: Path) -> Owner | None:
    try:
        return Owner.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _write_owner(descriptor: int, child_pid: int | None) -> None:
    owner = Owner(host=host_name(), pid=os.getpid(), started=process_started(), child_pid=child_pid)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, owner.model_dump_json().encode(), 0)
