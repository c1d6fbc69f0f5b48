"""Isolation by Linux namespaces: no network, no other processes, and a file system with Python's own files alone.

Root can create namespaces; other users can if the machine allows unprivileged user namespaces.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

from nanochat.tools.sandbox.kernel_calls import checked, libc, syscall
from nanochat.tools.sandbox.settings import MAX_FILES

_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 8, 1 << 12, 1 << 14, 1 << 18
_MNT_DETACH = 2
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _AT_FDCWD, _AT_RECURSIVE = 1, 2, -100, 0x8000
_SYS_MOUNT_SETATTR = 442  # the same number on every architecture
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}


def unshare() -> None:
    """Enter new namespaces for mounts, processes (from the next fork on), network, IPC and host name."""
    flags = _CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC | _CLONE_NEWPID | _CLONE_NEWNET
    user, group = os.geteuid(), os.getegid()
    if user == 0 and libc().unshare(flags) == 0:
        return
    checked("unshare", libc().unshare(flags | _CLONE_NEWUSER))
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{user} {user} 1")
    _write("/proc/self/gid_map", f"{group} {group} 1")


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(text)


def enter_root(folder: str, readable: Iterable[str], *, writable_bytes: int) -> None:
    """Replace the file system by one in memory that shows the `readable` paths and an empty folder at `folder`.

    Only `folder` can be written to, up to `writable_bytes`; nothing can if that is 0. Call this in the first process of
    the new namespaces.
    """
    _mount("none", "/", "none", _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", folder, "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, "size=64k,mode=755")
    for path in readable:
        _show(path, folder)
    inner = folder + folder
    os.makedirs(inner)  # noqa: PTH103
    attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID, 0, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    what = "read-only mounts"
    syscall(what, _SYS_MOUNT_SETATTR, _AT_FDCWD, folder.encode(), _AT_RECURSIVE, attributes, size)
    if writable_bytes:
        options = f"size={writable_bytes},nr_inodes={MAX_FILES},mode=777"
        _mount("tmpfs", inner, "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, options)
    os.chdir(folder)
    syscall("pivot_root", _SYS_PIVOT_ROOT[os.uname().machine], b".", b".")
    checked("umount", libc().umount2(b".", _MNT_DETACH))  # the old root lies over the new one
    os.chdir("/")


def _show(path: str, root: str) -> None:
    """Make a file or folder, and the links that lead to it, appear at the same path under `root`."""
    real = os.path.realpath(path)
    if real != path and not os.path.lexists(root + path):
        os.makedirs(os.path.dirname(root + path), exist_ok=True)  # noqa: PTH103, PTH120
        os.symlink(real, root + path)  # noqa: PTH211
    if os.path.lexists(root + real):
        return  # a folder above it is shown
    if os.path.isdir(real):  # noqa: PTH112
        os.makedirs(root + real)  # noqa: PTH103
    else:
        os.makedirs(os.path.dirname(root + real), exist_ok=True)  # noqa: PTH103, PTH120
        os.mknod(root + real)
    _mount(real, root + real, "none", _MS_BIND | _MS_REC)


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    arguments = (source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    checked(f"mount on {target}", libc().mount(*arguments))
