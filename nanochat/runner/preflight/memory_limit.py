"""How much memory a stage may take here: the recipe's limit, else what the machine or its GPU has. Asks no MLX."""

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
    """Return the bytes a stage may take: `given`, else the device's memory; None where that is not known."""
    if given is not None:
        return given
    if device == "cuda":
        return _gpu_bytes()
    return min(int(psutil.virtual_memory().total), runtime.container_memory_bytes() or sys.maxsize)


def gpu_count() -> int | None:
    """Return how many NVIDIA GPUs this machine has, None where no driver answers."""
    return len(_gpus()) or None


def _gpu_bytes() -> int | None:
    """Return the memory of the first GPU as its driver says it, None where the driver does not answer."""
    return next(iter(_gpus()), None)


def _gpus() -> list[int]:
    """Return the bytes of each GPU's memory."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        asked = subprocess.run([program, *_QUERY], capture_output=True, text=True, timeout=_QUERY_SECONDS, check=True)
        return [int(line) * 2**20 for line in asked.stdout.split()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []
