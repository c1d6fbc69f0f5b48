"""A filter of system calls (Linux): computing, memory, threads and plain files are allowed, and nothing else.

The process can then start no process and no program. It cannot talk to another process, through a socket or otherwise,
and can signal only itself. It can make no folder and no link, and cannot change the mode, owner or times of a file.
Not here: which files it may open (`namespaces` and `landlock`).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

from nanochat.tools.sandbox.kernel_calls import PR_SET_SECCOMP, prctl

# Each name with its numbers on x86_64 and on aarch64, from the kernel's headers. `-` means that there is none.
_ALLOWED = """
read 0 63, write 1 64, close 3 57, fstat 5 80, lseek 8 62, mmap 9 222, mprotect 10 226, munmap 11 215, brk 12 214,
rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, futex 202 98, clock_gettime 228 113,
newfstatat 262 79, getdents64 217 61, stat 4 -, lstat 6 -, poll 7 -, pread64 17 67, pwrite64 18 68, readv 19 65,
writev 20 66, access 21 -, pipe 22 -, select 23 -, sched_yield 24 124, mremap 25 216, msync 26 227, mincore 27 232,
madvise 28 233, dup 32 23, dup2 33 -, pause 34 -, nanosleep 35 101, getitimer 36 102, alarm 37 -, setitimer 38 103,
getpid 39 172, sendfile 40 71, exit 60 93, wait4 61 260, uname 63 160, flock 73 32, fsync 74 82, fdatasync 75 83,
ftruncate 77 46, getdents 78 -, getcwd 79 17, chdir 80 49, fchdir 81 50, rename 82 -, creat 85 -, unlink 87 -,
readlink 89 -, umask 95 166, gettimeofday 96 169, getrlimit 97 163, getrusage 98 165, sysinfo 99 179, times 100 153,
getuid 102 174, getgid 104 176, geteuid 107 175, getegid 108 177, getppid 110 173, getpgrp 111 -, getgroups 115 158,
getresuid 118 148, getresgid 120 150, getpgid 121 155, getsid 124 156, capget 125 90, rt_sigpending 127 136,
rt_sigtimedwait 128 137, rt_sigsuspend 130 133, sigaltstack 131 132, statfs 137 43, fstatfs 138 44, getpriority 140 141,
setrlimit 160 164, gettid 186 178, time 201 -, sched_getaffinity 204 123, epoll_create 213 -, set_tid_address 218 96,
restart_syscall 219 128, fadvise64 221 223, clock_getres 229 114, clock_nanosleep 230 115, exit_group 231 94,
epoll_wait 232 -, epoll_ctl 233 21, waitid 247 95, unlinkat 263 35, renameat 264 38, readlinkat 267 78,
faccessat 269 48, pselect6 270 72, ppoll 271 73, set_robust_list 273 99, get_robust_list 274 100, epoll_pwait 281 22,
timerfd_create 283 85, fallocate 285 47, timerfd_settime 286 86, timerfd_gettime 287 87, eventfd2 290 19,
epoll_create1 291 20, dup3 292 24, pipe2 293 59, preadv 295 69, pwritev 296 70, getcpu 309 168, renameat2 316 276,
getrandom 318 278, membarrier 324 283, copy_file_range 326 285, preadv2 327 286, pwritev2 328 287, statx 332 291,
rseq 334 293, close_range 436 436, faccessat2 439 439, epoll_pwait2 441 441, futex_waitv 449 449
"""
_CHECKED = """
open 2 -, openat 257 56, clone 56 220, fcntl 72 25, ioctl 16 29, kill 62 129, tgkill 234 131, prlimit64 302 261,
prctl 157 167
"""
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""The column in the tables above, and the kernel's name for the architecture."""
_FIRST_SHARED_NUMBER = 424
"""From this number on, the C library expects calls to be missing, and then makes older ones."""

_CLONE_THREAD = 0x10000
_FCNTL = (
    *(fcntl.F_DUPFD, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL, fcntl.F_SETFL, 5, 6, 7),  # 5 to 7: locks
    *(36, 37, 38, 1030, 1032),  # locks of open files, F_DUPFD_CLOEXEC, F_GETPIPE_SZ
)
"""Not F_SETOWN and F_SETSIG, which make the kernel send signals to other processes."""
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_PRCTL = (15, 16)  # the thread's name

_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_MODE_FILTER = 2


class _Check(NamedTuple):
    """A call is allowed if its argument of this number, masked, has one of these values."""

    argument: int
    mask: int
    values: tuple[int, ...]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def install() -> None:
    """Filter the system calls of this process from now on. Needs `no_new_privs`. Raises OSError."""
    machine = os.uname().machine
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"the numbers of system calls on {machine} are not known here")
    code = b"".join(_instructions(*_ARCHITECTURES[machine], own_process=os.getpid()))
    program = _Program(len(code) // 8, code)
    prctl(PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program))


def _instructions(column: int, architecture: int, *, own_process: int) -> Iterator[bytes]:
    """Yield the filter's instructions. Every decision is a return, because jumps reach only 255 instructions far."""
    yield _instruction(_LOAD, _ARCHITECTURE_AT)
    yield _instruction(_EQUAL, architecture, if_true=1)
    yield _instruction(_RETURN, _KILL)
    yield _instruction(_LOAD, _NUMBER_AT)
    for _, number in _numbers(_ALLOWED, column):
        yield _instruction(_EQUAL, number, if_false=1)
        yield _instruction(_RETURN, _ALLOW)
    checks = _checks(own_process)
    for name, number in _numbers(_CHECKED, column):
        check = checks[name]
        yield _instruction(_EQUAL, number, if_false=3 + 2 * len(check.values))
        yield _instruction(
            _LOAD, _ARGUMENTS_AT + 8 * check.argument
        )  # the lower half: both architectures are little-endian
        yield _instruction(_AND, check.mask)
        for value in check.values:
            yield _instruction(_EQUAL, value, if_false=1)
            yield _instruction(_RETURN, _ALLOW)
        yield _instruction(_RETURN, _ERROR | errno.EPERM)
    yield _instruction(_AT_LEAST, _FIRST_SHARED_NUMBER, if_false=1)
    yield _instruction(_RETURN, _ERROR | errno.ENOSYS)
    yield _instruction(_RETURN, _ERROR | errno.EPERM)


def _checks(own_process: int) -> dict[str, _Check]:
    everything = 0xFFFFFFFF
    # Older Landlock does not notice that opening a file for reading can empty it.
    truncates = os.O_TRUNC | os.O_ACCMODE
    modes = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_TRUNC | os.O_WRONLY, os.O_TRUNC | os.O_RDWR)
    return {
        "open": _Check(1, truncates, modes),
        "openat": _Check(2, truncates, modes),
        "clone": _Check(0, _CLONE_THREAD, (_CLONE_THREAD,)),
        "fcntl": _Check(1, everything, _FCNTL),
        "ioctl": _Check(1, everything, _IOCTL),
        "kill": _Check(0, everything, (own_process,)),
        "tgkill": _Check(0, everything, (own_process,)),
        "prlimit64": _Check(0, everything, (0, own_process)),
        "prctl": _Check(0, everything, _PRCTL),
    }


def _numbers(table: str, column: int) -> Iterator[tuple[str, int]]:
    for row in table.split(","):
        name, *numbers = row.split()
        if numbers[column] != "-":
            yield name, int(numbers[column])


def _instruction(code: int, value: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)
