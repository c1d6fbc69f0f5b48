"""Isolation of files by Landlock (Linux 5.13 and later), which works without namespaces and without privileges.

`seccomp` covers what Landlock does not: network, processes, signals, and changes of a file's mode, owner and times.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

from nanochat.tools.sandbox.kernel_calls import syscall

# The same numbers on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION, _PATH_BENEATH = 1, 1
_WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_FILE, _MAKE_REG, _TRUNCATE = (1 << bit for bit in (1, 2, 3, 5, 8, 14))
_RIGHTS = ((1 << 13) - 1, (1 << 14) - 1, (1 << 15) - 1)
"""All rights that versions 1, 2 and 3 can refuse; the rights of later versions concern what `seccomp` refuses."""


class _PathRule(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def restrict(readable: Iterable[str], writable: str | None) -> None:
    """Let this process read only below the `readable` paths, and make, change and delete files only in `writable`.

    Needs `no_new_privs`. Raises OSError if the kernel has no Landlock.
    """
    version = syscall("landlock", _CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION)
    rights = _RIGHTS[min(version, len(_RIGHTS)) - 1]
    handled = ctypes.c_uint64(rights)
    size = ctypes.c_size_t(ctypes.sizeof(handled))
    ruleset = syscall("landlock", _CREATE_RULESET, ctypes.byref(handled), size, 0)
    for path in readable:
        _allow(ruleset, path, _READ_FILE | _READ_DIR)
    _allow(ruleset, os.devnull, _READ_FILE | _WRITE_FILE)
    if writable is not None:
        changes = _WRITE_FILE | _REMOVE_FILE | _MAKE_REG | _TRUNCATE
        _allow(ruleset, writable, (_READ_FILE | _READ_DIR | changes) & rights)
    syscall("landlock", _RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    if not os.path.isdir(path):  # noqa: PTH112
        rights &= _READ_FILE | _WRITE_FILE
    rule = _PathRule(rights, descriptor)
    syscall("landlock", _ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
    os.close(descriptor)
