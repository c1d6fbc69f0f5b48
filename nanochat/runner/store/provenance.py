"""Which code and machine is running: git commit, package versions, host, and whether a process is still alive."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import psutil

import nanochat
from nanochat.runner.store.record import Provenance

_PACKAGES = ("nanochat", "mlx", "numpy", "sentencepiece", "pyarrow", "mlflow")
_START_TOLERANCE_SECONDS = 2.0
"""Two readings of when a process started may differ by this much."""


def host_name() -> str:
    """Return this machine's name."""
    return platform.node() or "localhost"


def collect() -> Provenance:
    """Return the code and machine of this process. None of the packages are imported for it."""
    commit, dirty = git_state(Path(nanochat.__file__))
    packages = {}
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


def process_started(pid: int | None = None) -> float:
    """Return when a process (default: this one) started, in seconds since the epoch, or 0 if it has ended."""
    try:
        return float(psutil.Process(os.getpid() if pid is None else pid).create_time())
    except psutil.Error:
        return 0.0


def is_alive(pid: int, started: float) -> bool:
    """Return whether the process `pid` that started at `started` is still running, and not a new one with that pid."""
    now_started = process_started(pid)
    return now_started != 0.0 and abs(now_started - started) < _START_TOLERANCE_SECONDS


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


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return None
