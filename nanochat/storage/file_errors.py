"""Explains errors of the file system that are not bugs: a full disk, a file that may not be written, a wrong file."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from nanochat.errors import NanochatError, PreflightError, StageError

SET_BASE_DIR = "set NANOCHAT_BASE_DIR to a folder that you may write"
REMOVE_RUNS = (
    "delete the folders of runs that you do not need in `runs/` of the base folder, and type `nanochat-run gc`, which "
    "deletes their results"
)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No space, the end of a quota, or a file that is too large for its file system (4 GB on FAT) or for `ulimit -f`."""
_DEVICE_LOST = (errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE)


def explain_file_error(error: OSError) -> NanochatError | None:
    """Return the error to report instead, with its message and exit code. None for an error that is a bug."""
    if error.errno in DISK_FULL:
        is_too_large = error.errno == errno.EFBIG
        what = "a file is larger than its disk or `ulimit -f` allows" if is_too_large else "the disk is full"
        return StageError(
            f"{what} ({error}). Everything saved before is intact. Free some space: {REMOVE_RUNS}. Then run the same "
            "command again."
        )
    if error.errno == errno.ENAMETOOLONG:
        return PreflightError(f"{error.filename}: the path is longer than the file system allows; use a shorter one")
    if is_lost_device(error):
        return StageError(f"{error.filename}: {error.strerror}; its disk or server fails or was removed")
    if is_no_permission(error):
        return PreflightError(f"{_path(error)}: {error.strerror}; if it belongs to the results, {SET_BASE_DIR}")
    if (problem := _wrong_kind(error)) is not None:
        return PreflightError(f"{_path(error)} {problem}; move it away, then run the same command again")
    return None


def _wrong_kind(error: OSError) -> str | None:
    """Return what is wrong with the file or folder at the path of an error. None for other errors."""
    match error.errno:
        case errno.EISDIR:
            return f"is {'a folder' if Path(_path(error)).is_dir() else 'a pipe or a device'}, but must be a file"
        case errno.EEXIST if not Path(_path(error)).is_dir():
            return "is not a folder, but must be one"
        case errno.ENOTDIR:
            return "is not a folder, or is below a file"
        case errno.ELOOP:
            return "is a link that leads to itself"
    return None


def require_file(descriptor: int, path: Path) -> None:
    """Close a descriptor and raise IsADirectoryError, unless it is that of a regular file.

    Writing to a pipe blocks, and a device loses what is written.
    """
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))


def is_no_permission(error: OSError) -> bool:
    """Return whether an error means that this user may not write here, or that the file system is read-only."""
    return isinstance(error, PermissionError) or error.errno == errno.EROFS


def is_lost_device(error: OSError) -> bool:
    """Return whether an error about a file means that its disk fails or was unplugged, or that its server is gone."""
    return error.errno in _DEVICE_LOST and error.filename is not None


def _path(error: OSError) -> str:
    """Return the path that an error is about; for a renaming, the new one."""
    return str(error.filename if error.filename2 is None else error.filename2)
