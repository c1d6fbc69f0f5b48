"""Isolates the process of a program, or of its tests, for good: files, user, limits, and system calls."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys

from nanochat.tools.sandbox import landlock, namespaces, seatbelt, seccomp
from nanochat.tools.sandbox.kernel_calls import (
    PR_CAPBSET_DROP,
    PR_SET_KEEPCAPS,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_PDEATHSIG,
    checked,
    libc,
    prctl,
)
from nanochat.tools.sandbox.settings import Limits, Settings

_NOBODY = 65534
_CAP_DAC_READ_SEARCH, _CAP_SETGID, _CAP_SETUID = 1 << 2, 1 << 6, 1 << 7
_CAPABILITY_HEADER = (ctypes.c_uint32 * 2)(0x20080522, 0)
"""The version of the calls, and this process."""
_SYSTEM_PATHS = (
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/nix/store", "/opt/homebrew"),
    *("/System/Library", "/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo"),
    *("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"),
)


def prepare(settings: Settings) -> int:
    """Let the user that will run the program write to the folder; return how many threads that user has."""
    if sys.platform != "linux":
        return 0
    user = _user_of_programs(_permitted_capabilities())
    if user != os.geteuid():
        with contextlib.suppress(OSError):  # a container may have no other user
            os.chown(settings.folder, -1, user)  # the group alone: root keeps the folder, and can delete it
            os.chmod(settings.folder, 0o770)  # noqa: PTH101
    return _threads_of(user)


def confine(settings: Settings, *, is_writable: bool, threads_before: int) -> None:
    """Isolate this process, which may keep writing to its own folder or to no file at all. Raises OSError.

    `threads_before` is the number of threads that the user who runs programs has already, because the limit counts
    those too. In namespaces, this must be the first process of its own.
    """
    limits, folder = settings.limits, settings.folder
    readable = _readable_paths()
    if settings.isolation == "namespaces":
        namespaces.enter_root(folder, readable, writable_bytes=limits.file_bytes if is_writable else 0)
        os.chdir(folder)
    elif not is_writable:
        os.chdir("/")
    if sys.platform == "linux":
        _give_up_privileges()
    _limit(limits, threads_before)
    if sys.platform == "linux":
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # again, because a change of user clears it
        prctl(PR_SET_NO_NEW_PRIVS, 1)
    match settings.isolation:
        case "namespaces":
            seccomp.install()
        case "landlock":
            landlock.restrict(readable, folder if is_writable else None)
            seccomp.install()
        case "seatbelt":
            seatbelt.enter(readable, folder if is_writable else None)
        case "none":
            if sys.platform == "linux":
                with contextlib.suppress(OSError):  # better than nothing
                    seccomp.install()


def _readable_paths() -> list[str]:
    """Return the paths that Python needs to import its standard library, without paths below others."""
    wanted = [*sys.path, os.path.join(sys.base_prefix, "lib"), *_SYSTEM_PATHS]  # noqa: PTH118
    paths = sorted({os.path.abspath(path) for path in wanted if os.path.exists(path)})  # noqa: PTH100, PTH110
    return [path for path in paths if not any(path.startswith(f"{above}/") for above in paths)]


def _give_up_privileges() -> None:
    """Drop all capabilities, and change from root to nobody, who can still read Python's own files."""
    permitted, kept = _permitted_capabilities(), 0
    for capability in range(64):
        libc().prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)  # fails beyond the last capability, and for ordinary users
    user = _user_of_programs(permitted)
    if user != os.geteuid():
        kept = 0 if _can_nobody_read_python() else _CAP_DAC_READ_SEARCH
        prctl(PR_SET_KEEPCAPS, 1)
        with contextlib.suppress(OSError):  # a container may have no other user
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
    masks = (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0)
    checked("capset", libc().capset(_CAPABILITY_HEADER, masks))


def _user_of_programs(permitted: int) -> int:
    """Return the user that programs run as: nobody instead of root, if root may change to it and Python still works."""
    needed = _CAP_SETUID | _CAP_SETGID | (0 if _can_nobody_read_python() else _CAP_DAC_READ_SEARCH)
    user = os.geteuid()
    return _NOBODY if user == 0 and permitted & needed == needed else user


def _permitted_capabilities() -> int:
    masks = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    checked("capget", libc().capget(_CAPABILITY_HEADER, masks))
    return masks[1]


def _can_nobody_read_python() -> bool:
    file = os.path.realpath(os.__file__)
    folders = [file := os.path.dirname(file) for _ in range(file.count("/"))]  # noqa: PTH120
    return all(os.stat(folder).st_mode & 0o005 == 0o005 for folder in folders)  # noqa: PTH116


def _limit(limits: Limits, threads_before: int) -> None:
    table = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_NOFILE, limits.open_files),
    ]
    if sys.platform == "linux":
        table += [(resource.RLIMIT_AS, limits.memory_bytes), (resource.RLIMIT_NPROC, limits.threads + threads_before)]
    for kind, limit in table:
        resource.setrlimit(kind, (limit, limit))


def _threads_of(user: int) -> int:
    count = 0
    for entry in os.scandir("/proc"):
        with contextlib.suppress(OSError):  # a process may end in between
            if entry.name.isdigit() and entry.stat().st_uid == user:
                count += len(os.listdir(f"/proc/{entry.name}/task"))  # noqa: PTH208
    return count
