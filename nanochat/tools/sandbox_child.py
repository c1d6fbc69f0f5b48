"""The process that `sandbox.run_program` starts: it isolates itself, runs the program, and returns its exit code.

There are up to three processes: the supervisor (this script), in namespaces an init process whose end also ends all
other processes there, and the program, which is forked from it. This file runs as a script and uses only the standard
library. It reads its request as JSON from standard input. It exits with 0, 1 or `sandbox_guard.REFUSED`, but the
program passes only if the nonce of the request was written to the pipe `done`.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import importlib.util
import json
import os
import resource
import signal
import sys
import traceback
import types
from typing import NoReturn

_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_CAPBSET_DROP = 1, 8, 24
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
_CAP_DAC_READ_SEARCH = 1 << 2
_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 1, 2, 4, 8, 1 << 14, 1 << 18
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _AT_FDCWD, _AT_RECURSIVE = 1, 2, -100, 0x8000
_SYS_MOUNT_SETATTR = 442  # the same number on every architecture
_CAPABILITY_VERSION = 0x20080522
_NOBODY = 65534
_HIDDEN = ("/tmp", "/var/tmp", "/run", "/dev/shm")
_MAX_FILES = 1024

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> int:
    """Return the exit code of the program's process: 0, 1 or `sandbox_guard.REFUSED`."""
    request = json.loads(sys.stdin.buffer.read())
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    guard = _load_guard()  # before mounts hide its folder
    is_confined = request["isolation"] == "namespaces"
    if is_confined:
        _unshare()
    elif os.geteuid() == 0 and sys.platform == "linux":
        os.chown(request["folder"], _NOBODY, _NOBODY)
    child = _fork(request, guard)
    _end_on_terminate(child)
    code = _wait(child, guard.REFUSED)
    if not is_confined and sys.platform == "linux":
        _end_orphans()
    return code


def _fork(request: dict[str, object], guard: types.ModuleType) -> int:
    """Return the process id of the program or, in namespaces, of the init process."""
    child = os.fork()
    if child:
        return child
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if request["isolation"] == "namespaces":
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            _mount(str(request["folder"]), request["limits"]["file_bytes"])  # type: ignore[index]
            program = os.fork()
            if program:
                os._exit(_wait(program, guard.REFUSED))
        _run_program(request, guard)
    except BaseException as error:  # noqa: BLE001 -- nothing may escape from this process
        _fail(error)


def _end_on_terminate(child: int) -> None:
    """Make SIGTERM kill the child. The supervisor still waits for it."""

    def end(*_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)


def _wait(child: int, refused: int) -> int:
    """Wait for `child` and return the exit code for it. Other processes that end in the meantime are reaped."""
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            if code < 0:
                os.write(2, f"ended by {signal.Signals(-code).name}\n".encode())
            return code if code in (0, refused) else 1


def _end_orphans() -> None:
    """Kill the processes that the program left. Linux has made them children of the supervisor."""
    while True:
        for entry in os.listdir("/proc"):  # noqa: PTH208
            if entry.isdigit() and _parent(entry) == os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(entry), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _parent(process: str) -> int:
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return -1


def _unshare() -> None:
    """Enter new namespaces for mounts, processes (from the next fork on), network, IPC and host name."""
    flags = _CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC | _CLONE_NEWPID | _CLONE_NEWNET
    user, group = os.geteuid(), os.getegid()
    _check("unshare", _libc.unshare(flags | (_CLONE_NEWUSER if user else 0)))
    if user:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{user} {user} 1")
        _write("/proc/self/gid_map", f"{group} {group} 1")


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(text)


def _mount(folder: str, size_bytes: int) -> None:
    """Make every file system read-only, hide shared folders, and mount a small in-memory file system at `folder`."""
    _check("mount private", _libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None))
    needed = [os.path.realpath(path) + "/" for path in (sys.prefix, sys.base_prefix, sys.executable, os.__file__)]
    plain = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    for hidden in _HIDDEN:
        if os.path.isdir(hidden) and not any(path.startswith(hidden + "/") for path in needed):  # noqa: PTH112
            _mount_new("tmpfs", hidden, plain, "size=64k,mode=755")
    os.makedirs(folder, exist_ok=True)  # noqa: PTH103
    attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID, 0, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    set_all = (_SYS_MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, attributes, size)
    _check("read-only mounts", _libc.syscall(*set_all))
    _mount_new("tmpfs", folder, plain, f"size={size_bytes},nr_inodes={_MAX_FILES},mode=777")
    _mount_new("proc", "/proc", plain | _MS_RDONLY, "")
    os.chdir(folder)


def _mount_new(kind: str, target: str, flags: int, options: str) -> None:
    arguments = (kind.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    _check(f"mount {kind} on {target}", _libc.mount(*arguments))


def _run_program(request: dict[str, object], guard: types.ModuleType) -> NoReturn:
    """Drop descriptors and privileges, set the limits, and run the program."""
    limits: dict[str, int] = request["limits"]  # type: ignore[assignment]
    ready, done = int(str(request["ready"])), int(str(request["done"]))
    os.closerange(3, min(ready, done))
    os.closerange(min(ready, done) + 1, max(ready, done))
    os.closerange(max(ready, done) + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    _give_up_privileges()
    _limit(limits)
    main_module = types.ModuleType("__main__")
    sys.modules["__main__"] = main_module
    os.write(ready, b"ready")
    os.close(ready)
    if request["is_guarded"]:
        _forget_native_code()
        guard.install(folder=str(request["folder"]), max_threads=limits["threads"])
    try:
        exec(compile(str(request["source"]), "program.py", "exec", dont_inherit=True), main_module.__dict__)
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 -- a program that exits or is interrupted has failed
        assert error.__traceback__ is not None
        _fail(error.with_traceback(error.__traceback__.tb_next))
    if _thread._count():
        os.write(2, b"ended with threads still running\n")
        os._exit(1)
    os.write(done, str(request["nonce"]).encode())
    os._exit(0)


def _forget_native_code() -> None:
    """Remove ctypes, so that the program cannot reach it."""
    del globals()["ctypes"], globals()["_libc"]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("ctypes", "_ctypes")]:
        del sys.modules[name]


def _fail(error: BaseException) -> NoReturn:
    try:
        sys.stdout.flush()
        traceback.print_exception(error, limit=-8)
        sys.stderr.flush()
    finally:
        os._exit(1)


def _give_up_privileges() -> None:
    """Drop all capabilities for good and change from root to nobody, who can still read Python's own files."""
    if sys.platform != "linux":
        return
    kept = 0
    for capability in range(64):
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # fails beyond the last capability, and for ordinary users
    if os.geteuid() == 0:
        kept = 0 if _is_readable_by_all(os.path.realpath(os.__file__)) else _CAP_DAC_READ_SEARCH
        _prctl(_PR_SET_KEEPCAPS, 1)
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    header, masks = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0)
    _check("capset", _libc.capset(header, masks))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # the change of user has cleared it


def _is_readable_by_all(file: str) -> bool:
    folders = [file := os.path.dirname(file) for _ in range(file.count("/"))]  # noqa: PTH120
    return all(os.stat(folder).st_mode & 0o005 == 0o005 for folder in folders)  # noqa: PTH116


def _limit(limits: dict[str, int]) -> None:
    cpu = limits["cpu_seconds"]
    table = [
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_FSIZE, limits["file_bytes"], limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"], limits["open_files"]),
    ]
    if sys.platform == "linux":
        table += [
            (resource.RLIMIT_AS, limits["memory_bytes"], limits["memory_bytes"]),
            (resource.RLIMIT_NPROC, limits["threads"], limits["threads"]),
        ]
    for kind, soft, hard in table:
        resource.setrlimit(kind, (soft, hard))


def _load_guard() -> types.ModuleType:
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sandbox_guard.py")  # noqa: PTH100, PTH118, PTH120
    spec = importlib.util.spec_from_file_location("sandbox_guard", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _prctl(option: int, value: int) -> None:
    _check("prctl", _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0))


def _check(what: str, result: int) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


if __name__ == "__main__":
    sys.exit(main())
