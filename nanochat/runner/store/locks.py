"""Locks the folder of a stage, a run or a sweep, so that only one command works in it at a time.

The lock is on the file `lock` in the folder and ends with the processes that hold it (`storage.locking`). The child
process of a stage inherits the open file, so the stage stays locked if the child outlives a killed parent. The text in
the file only names the holder. `claims` is another lock: it keeps `gc` away from stages that a run is about to use.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

from nanochat.errors import LockError, PreflightError
from nanochat.runner.store.provenance import is_alive, machine_id, this_process
from nanochat.storage.files import read_file
from nanochat.storage.layout import RunFolder, StageFolder, SweepFolder
from nanochat.storage.locking import lock_file, open_lock, waiting_lock

_POLL_SECONDS = 0.1
ORPHAN_WAIT_SECONDS = 30.0
"""How long to wait for a child process whose parent was killed. The child notices that, and ends by itself."""
_PROBE_WAIT_SECONDS = 1.0
"""`is_locked` holds a lock for an instant. A lock without a known holder counts as held only after this time."""


class Owner(BaseModel):
    """The process that holds, or last held, a lock."""

    host: str
    pid: int
    started: float
    machine: str = ""
    """The machine or container that counts the pid, see `provenance.machine_id`."""
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
    what = f"stage {folder.stage} ({folder.path})"
    with _hold(folder.lock, what, orphan_wait_seconds) as lock:
        yield lock


@contextmanager
def run_lock(folder: RunFolder) -> Iterator[None]:
    """Hold the lock of a run folder. The message of the LockError names the host and pid of the command that holds it.

    Child processes do not inherit it: whether the run is in progress depends on the command alone.
    """
    with _hold(folder.lock, f"the run {folder.path}", 0):
        yield


@contextmanager
def sweep_lock(folder: SweepFolder, *, is_shared: bool) -> Iterator[None]:
    """Hold the lock of a sweep while running its cells. Commands can share it, unless results decide what runs next.

    See `run_lock`.
    """
    with waiting_lock(folder.lock, shared=True) if is_shared else _hold(folder.lock, f"the sweep {folder.path}", 0):
        yield


def is_locked(folder: StageFolder | RunFolder | SweepFolder) -> bool:
    """Return whether a process holds the lock of a folder right now. The folder need not be writable."""
    try:  # NFS has no exclusive lock, which commands that share one need, on a file that is only open for reading
        descriptor = os.open(folder.lock, os.O_RDWR if os.access(folder.lock, os.W_OK) else os.O_RDONLY)
    except OSError:  # there is no lock file, or only its owner may open it
        return False
    try:
        return not lock_file(descriptor, folder.lock, shared=not isinstance(folder, SweepFolder), wait=False)
    except PreflightError:  # on a disk without locks, only the text of the file is left to go by
        owner = read_owner(folder.lock)
        return owner is not None and not _has_ended(owner)
    finally:
        os.close(descriptor)


def read_owner(path: Path) -> Owner | None:
    """Return the process that holds the lock on a file, or died while holding it. None if no process did."""
    try:
        return Owner.model_validate_json(read_file(path))
    except (FileNotFoundError, ValidationError):
        return None


@contextmanager
def claims(base: Path, *, to_delete: bool = False) -> Iterator[None]:
    """Prevent `gc` from deleting a stage between its cache look-up and its entry in `run.json`.

    Runs share this lock; with `to_delete`, `gc` holds it exclusively.
    """
    base.mkdir(parents=True, exist_ok=True)
    with waiting_lock(base / "claims.lock", shared=not to_delete):
        yield


@contextmanager
def _hold(path: Path, what: str, orphan_wait_seconds: float) -> Iterator[StageLock]:
    descriptor = _acquire(path, what, orphan_wait_seconds)
    try:
        previous = read_owner(path)
        _write_owner(descriptor, None)
        yield StageLock(descriptor, previous)
    finally:
        os.ftruncate(descriptor, 0)
        os.close(descriptor)


def _acquire(path: Path, what: str, orphan_wait_seconds: float) -> int:
    began = time.monotonic()
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = open_lock(path)
        if lock_file(descriptor, path, wait=False):
            if _is_current(descriptor, path):
                return descriptor
            os.close(descriptor)
            continue
        os.close(descriptor)
        owner = read_owner(path)
        _wake_orphan(owner)
        if time.monotonic() - began >= _wait_seconds(owner, orphan_wait_seconds):
            raise _held_by(what, owner)
        time.sleep(_POLL_SECONDS)


def _is_current(descriptor: int, path: Path) -> bool:
    """Return whether the locked file is still the one at the path. `gc` may have deleted it in the meantime."""
    try:
        current = path.stat()
    except FileNotFoundError:
        return False
    locked = os.fstat(descriptor)
    return (current.st_dev, current.st_ino) == (locked.st_dev, locked.st_ino)


def _wait_seconds(owner: Owner | None, orphan_wait_seconds: float) -> float:
    if owner is None or owner.machine != machine_id():
        return _PROBE_WAIT_SECONDS
    return orphan_wait_seconds if _has_ended(owner) else 0.0


def _wake_orphan(owner: Owner | None) -> None:
    """Continue a child that Ctrl-Z had suspended when its parent was killed, so that it notices, and ends."""
    if owner is not None and owner.child_pid is not None and _has_ended(owner):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(owner.child_pid, signal.SIGCONT)


def _has_ended(owner: Owner) -> bool:
    """Return whether a process is known to have ended. Nothing is known about those of other machines."""
    return owner.machine == machine_id() and not is_alive(owner.pid, owner.started)


def _held_by(what: str, owner: Owner | None) -> LockError:
    if owner is not None:
        pid = owner.child_pid if _has_ended(owner) and owner.child_pid else owner.pid
        what += f": host {owner.host}, pid {pid}"
    return LockError(f"another command holds {what}; wait for it to end, then run the same command")


def _write_owner(descriptor: int, child_pid: int | None) -> None:
    owner = Owner(**this_process()._asdict(), child_pid=child_pid)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, owner.model_dump_json().encode(), 0)
