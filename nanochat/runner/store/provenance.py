"""Identifies the running code and machine: git commit, package versions, host, and whether a process is still alive.

A process is known by its number, by when it started, and by the machine that counts its processes. A host name is only
for people to read: containers have random names, and a laptop's name changes with the network.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

import nanochat
from nanochat.runner.store.record import Provenance

DISTRIBUTION = "nanochat-run"
_PACKAGES = ("mlx", "numpy", "sentencepiece", "pyarrow", "mlflow")
_BOOT_ID, _PID_NAMESPACE = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
_SYSCTL_SECONDS = 5.0
_ID_CHARS = 16


def host_name() -> str:
    """Return this machine's name."""
    return platform.node() or "localhost"


class ProcessId(NamedTuple):
    """A process of this machine or of another one."""

    host: str
    machine: str
    """The id of what counts its processes, see `machine_id`."""
    pid: int
    started: float
    """See `process_started`."""


def this_process() -> ProcessId:
    """Return the process that calls this."""
    return ProcessId(host_name(), machine_id(), os.getpid(), process_started())


def collect() -> Provenance:
    """Return the code and machine of this process. None of the packages are imported for it."""
    commit, dirty = _code_state()
    packages = {"nanochat": nanochat.__version__}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    return Provenance(
        git_commit=commit,
        git_dirty=dirty,
        packages=packages,
        python=platform.python_version(),
        platform=platform.platform(),
        host=host_name(),
    )


def describe_version() -> str:
    """Return the version and, where known, the commit of this code, as text."""
    commit, dirty = _code_state()
    where = f"commit {commit}{' with local changes' if dirty else ''}" if commit else "commit unknown"
    return f"nanochat {nanochat.__version__}, {where}"


@cache
def machine_id() -> str:
    """Return an id of what counts the processes here: this boot of this machine and, on Linux, its container."""
    return hashlib.sha256(_counter_of_processes().encode()).hexdigest()[:_ID_CHARS]


def _counter_of_processes() -> str:
    if _BOOT_ID.exists():
        return f"{_BOOT_ID.read_text().strip()} {_PID_NAMESPACE.readlink()}"
    command = ["sysctl", "-n", "kern.bootsessionuuid"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            command, capture_output=True, text=True, timeout=_SYSCTL_SECONDS, check=True
        ).stdout.strip()
    return host_name()


def process_started(pid: int | None = None) -> float:
    """Return when a process (default: this one) started, or 0 if it has ended.

    The value only serves to compare. On Linux it is in seconds since the machine started, because a time of day would
    change when somebody sets the clock.
    """
    number = os.getpid() if pid is None else pid
    if _BOOT_ID.exists():
        with contextlib.suppress(OSError):
            # The name of the program, in parentheses, may hold blanks. The start is the 20th field after it.
            fields = Path(f"/proc/{number}/stat").read_text(errors="replace").rpartition(")")[2].split()
            return int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return 0.0
    import psutil  # here, because planning imports this module

    try:
        return float(psutil.Process(number).create_time())
    except psutil.Error:
        return 0.0


def is_alive(pid: int, started: float) -> bool:
    """Return whether the process `pid` that started at `started` is still running, and not a new one with that pid.

    Only for processes of this machine (`machine_id`).
    """
    return started != 0.0 and process_started(pid) == started


def git_state(package_file: Path) -> tuple[str | None, bool]:
    """Return the commit of the repository that tracks a source file, and whether tracked files were changed since.

    The commit is None unless git tracks the file itself. A package installed from a wheel may lie inside the repository
    of another project, whose commit says nothing about our code.
    """
    folder = package_file.parent
    if _git(folder, "ls-files", "--error-unmatch", package_file.name) is None:
        return None, False
    commit = _git(folder, "rev-parse", "HEAD")
    return commit, commit is not None and bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))


def _code_state() -> tuple[str | None, bool]:
    """Return the commit of this code, if it is known, and whether files were changed since.

    A checkout knows its commit from git, and a package that pip installed from a repository from what pip recorded.
    """
    commit, dirty = git_state(Path(nanochat.__file__))
    return (installed_commit(Path(nanochat.__file__).parent), False) if commit is None else (commit, dirty)


def installed_commit(package: Path) -> str | None:
    """Return the commit that pip recorded when it installed a package folder from a repository (PEP 610), or None."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        distribution = importlib.metadata.distribution(DISTRIBUTION)
        if Path(str(distribution.locate_file(package.name))).resolve() == package.resolve():
            return str(json.loads(distribution.read_text("direct_url.json") or "null")["vcs_info"]["commit_id"])
    return None


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return None
