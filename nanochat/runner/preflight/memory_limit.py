"""How much memory a stage may use: the limit in the recipe, else that of the machine or GPU. Does not import MLX."""

from __future__ import annotations

import shutil
import subprocess
import sys

import psutil

from nanochat import runtime
from nanochat.plan.estimate.device_rates import DeviceClass

_QUERY = ("--query-gpu=memory.total", "--format=csv,noheader,nounits")
_QUERY_SECONDS = 10.0


def memory_limit(given: int | None, device: DeviceClass) -> int | None:
    """Return how many bytes a stage may use: `given`, else the device's memory, or None if that is not known."""
    if given is not None:
        return given
    if device == "cuda":
        return next(iter(_gpu_memories()), None)
    return min(int(psutil.virtual_memory().total), runtime.container_memory_bytes() or sys.maxsize)


def gpu_count() -> int | None:
    """Return how many NVIDIA GPUs this machine has, or None if no driver answers."""
    return len(_gpu_memories()) or None


def _gpu_memories() -> list[int]:
    """Return the memory of each NVIDIA GPU in bytes, as its driver reports it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        query = subprocess.run([program, *_QUERY], capture_output=True, text=True, timeout=_QUERY_SECONDS, check=True)
        return [int(line) * 2**20 for line in query.stdout.split()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []
