"""Temporary folders outside the base folder, whose remains are found if their process is killed.

The name of a folder carries the id of its process, which also holds a lock on it. The folder of a process that has
ended is deleted by the next process that looks for such folders.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NAME = re.compile(r"nanochat-[a-z]+-(\d{1,9})-\w+")


@contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """Create a temporary folder, and delete it when the block ends. `purpose` is a word for its name."""
    folder = Path(os.path.realpath(tempfile.mkdtemp(prefix=f"nanochat-{purpose}-{os.getpid()}-")))
    lock = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: the process id must do
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(lock)
        _delete(folder)


def find_dead_folders() -> list[Path]:
    """Return the temporary folders that killed processes of this user left."""
    import psutil  # here, because reading a recipe imports this room

    folders = []
    for folder in Path(tempfile.gettempdir()).glob("nanochat-*"):
        match = _NAME.fullmatch(folder.name)
        if match and not psutil.pid_exists(int(match[1])) and _is_free(folder):
            folders.append(folder)
    return sorted(folders)


def delete_dead_folders() -> None:
    """Delete the folders that `find_dead_folders` returns."""
    for folder in find_dead_folders():
        _delete(folder)


def _is_free(folder: Path) -> bool:
    """Return whether a folder is this user's and is not locked. Its process may run in another container."""
    try:
        if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
            return False
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        os.close(lock)
    return True


def _delete(folder: Path) -> None:
    with contextlib.suppress(RecursionError):
        shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():  # a program that a model wrote may leave folders that are locked or thousands deep
        for command in (["chmod", "-R", "u+rwx"], ["rm", "-rf"]):
            subprocess.run([*command, str(folder)], stderr=subprocess.DEVNULL, check=False)
