"""Which code and machine is running: git commit, package versions, host, and whether a process still lives."""

from __future__ import annotations

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


def host_name() -> str:
    """Return this machine's name."""
    return platform.node() or "localhost"


def collect() -> Provenance:
    """Return the facts about the code and machine of this process; imports none of the packages."""
    commit, dirty = _git_state(Path(nanochat.__file__).parent)
    return Provenance(
        git_commit=commit,
        git_dirty=dirty,
        packages={name: version for name in _PACKAGES if (version := _version(name)) is not None},
        python=platform.python_version(),
        platform=platform.platform(),
        host=host_name(),
    )


def process_started(pid: int | None = None) -> float:
    """Return when a process (default: this one) began, in seconds since the epoch; 0 where it is gone."""
    try:
        return float(psutil.Process(os.getpid() if pid is None else pid).create_time())
    except psutil.Error:
        return 0.0


def is_alive(pid: int, started: float) -> bool:
    """Return whether the process `pid` that began at `started` still runs (a reused pid does not count)."""
    now_started = process_started(pid)
    if now_started == 0.0:
        return False
    return abs(now_started - started) < _START_TOLERANCE_SECONDS


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_state(folder: Path) -> tuple[str | None, bool]:
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None, False
    return commit, bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
