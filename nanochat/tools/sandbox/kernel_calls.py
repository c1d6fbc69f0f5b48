"""Calls of the C library that Python's standard library does not offer."""

from __future__ import annotations

import ctypes
import os
from functools import cache

PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 8, 22, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38


@cache
def libc() -> ctypes.CDLL:
    """Return the C library of this process."""
    return ctypes.CDLL(None, use_errno=True)


def checked(what: str, result: int) -> int:
    """Return the result of a call. Raises OSError, which names `what` was called, if it is negative."""
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def syscall(what: str, number: int, *arguments: object) -> int:
    """Return the result of a system call. Raises OSError if it fails."""
    return checked(what, libc().syscall(ctypes.c_long(number), *arguments))


def prctl(option: int, value: int, pointer: object = 0) -> None:
    """Change a property of this process. Raises OSError if that fails."""
    checked("prctl", libc().prctl(option, ctypes.c_ulong(value), pointer, 0, 0))
