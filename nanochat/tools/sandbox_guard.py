"""Refuses forbidden actions of a sandboxed program by an audit hook (PEP 578).

`sandbox_child` loads this module in the program's own process; it uses only the standard library. A refusal ends the
program at once, so that the program cannot catch it. Native code and attacks on the interpreter are not covered.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

REFUSED = 98
"""Exit code of a program that was ended because it tried something forbidden."""
_MAX_WRITES = 64
_MAX_DEPTH = 16

_REFUSED_EVENTS = frozenset(
    {
        "_winapi.CreateProcess", "code.__new__", "fcntl.ioctl", "gc.get_objects", "gc.get_referents",
        "gc.get_referrers", "os.chflags", "os.exec", "os.fork", "os.forkpty", "os.kill", "os.killpg", "os.link",
        "os.lockf", "os.posix_spawn", "os.removexattr", "os.setxattr", "os.spawn", "os.symlink", "os.system",
        "pty.spawn", "resource.prlimit", "resource.setrlimit", "signal.pthread_kill", "sqlite3.connect",
        "subprocess.Popen", "sys._current_exceptions", "sys._current_frames", "sys.addaudithook", "sys.setprofile",
        "sys.settrace", "webbrowser.open",
    }
)  # fmt: skip
_REFUSED_PREFIXES = ("ctypes.", "socket.", "syslog.", "winreg.")
# For each event: the number of leading arguments that are paths, and the index of the first folder descriptor.
_PATHS = {
    "os.chmod": (1, 2),
    "os.chown": (1, 3),
    "os.mkdir": (1, 2),
    "os.remove": (1, 1),
    "os.rename": (2, 2),
    "os.rmdir": (1, 1),
    "os.truncate": (1, 2),
    "os.utime": (1, 3),
}
_NATIVE = ("ctypes", "_ctypes", "_dbm", "_gdbm", "readline", "_testcapi", "_testinternalcapi", "_xxsubinterpreters")
# Functions that have effects outside the process but raise no audit event.
_SILENT = {
    "posix": (
        "chroot", "copy_file_range", "login_tty", "memfd_create", "mkfifo", "mknod", "nice", "pidfd_open",
        "posix_openpt", "openpty", "sched_setaffinity", "sched_setscheduler", "setns", "setpgid", "setpgrp",
        "setpriority", "setsid", "splice", "unshare",
    ),
    "_posixsubprocess": ("fork_exec",),
    "_posixshmem": ("shm_open", "shm_unlink"),
    "_multiprocessing": ("SemLock", "sem_unlink"),
}  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def install(*, folder: str, max_threads: int) -> None:
    """Refuse forbidden actions in this process from now on. Only `folder` may be written to. Cannot be undone."""
    refuse = _refusal()
    for module_name, names in _SILENT.items():
        _replace(module_name, names, refuse)
    sys.addaudithook(_hook(folder, max_threads, refuse))


def _refusal() -> Callable[[str], NoReturn]:
    write, leave = os.write, os._exit

    def refuse(what: str) -> NoReturn:
        write(2, f"refused: {what}\n".encode(errors="replace"))
        leave(REFUSED)

    return refuse


def _replace(module_name: str, names: tuple[str, ...], refuse: Callable[[str], NoReturn]) -> None:
    try:
        module = importlib.import_module(module_name)
    except ImportError:
        return
    for name in names:
        if hasattr(module, name):

            def refused(*_: object, _name: str = name, **__: object) -> NoReturn:
                refuse(_name)

            setattr(module, name, refused)
            if getattr(os, name, None) is not None and module_name == "posix":
                setattr(os, name, refused)


def _hook(folder: str, max_threads: int, refuse: Callable[[str], NoReturn]) -> Callable[[str, tuple[Any, ...]], None]:
    realpath, fsdecode, isdir = os.path.realpath, os.fsdecode, os.path.isdir
    inside = folder + os.sep
    counts = {"writes": 0, "threads": 0}

    def count(what: str, limit: int) -> None:
        counts[what] += 1
        if counts[what] > limit:
            refuse(f"more than {limit} {what}")

    def check_write(event: str, path: Any) -> None:
        if isinstance(path, int):
            return  # checked when it was opened
        real = realpath(fsdecode(path))
        if real == os.devnull:
            return
        if not (real + os.sep).startswith(inside) or real.count(os.sep) - inside.count(os.sep) > _MAX_DEPTH:
            refuse(f"{event} {real!r}, outside its folder")
        count("writes", _MAX_WRITES)

    def check_open(path: Any, mode: object, flags: object) -> None:
        if isinstance(path, int):
            return None
        is_written = isinstance(flags, int) and flags & _WRITING
        if is_written or (isinstance(mode, str) and set(mode) & set("wax+")):
            return check_write("open", path)
        real = realpath(fsdecode(path))
        if real.startswith("/proc"):
            refuse(f"open {real!r}")
        if mode is None and isdir(real):
            raise PermissionError(1, "folders cannot be opened in the sandbox", path)
        return None

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            check_open(*arguments[:3])
        elif event in _PATHS:
            paths, descriptor = _PATHS[event]
            if any(number not in (-1, None) for number in arguments[descriptor:]):
                refuse(f"{event} relative to a folder descriptor")
            for path in arguments[:paths]:
                check_write(event, path)
        elif event == "_thread.start_new_thread":
            count("threads", max_threads)
        elif event == "import":
            if arguments[0] in _NATIVE:
                raise ImportError(f"{arguments[0]} is not available in the sandbox")
        elif event in _REFUSED_EVENTS or event.startswith(_REFUSED_PREFIXES):
            refuse(event)

    return hook
