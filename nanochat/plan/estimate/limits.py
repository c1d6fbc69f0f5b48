"""How much of a device's memory a stage may use, by default."""

from __future__ import annotations

from nanochat.plan.estimate.device_rates import DeviceClass

_SHARE = 0.8
"""Share of the memory that `micro_batch_size: auto` plans to use. The allocator's slack needs the rest."""
_METAL_SHARE = 0.9
"""Share of the memory that macOS recommends for the GPU, beyond which a process may be aborted."""
_LARGE_MAC_BYTES = 36 * 2**30


def usable_bytes(device: DeviceClass, memory_bytes: int, *, recommended_bytes: int | None = None) -> int:
    """Return how many of `memory_bytes`, a device's memory, `auto` plans to use.

    `recommended_bytes` is what Metal recommends for the GPU, if that is known.
    """
    if device != "metal":
        return int(_SHARE * memory_bytes)
    return int(_METAL_SHARE * (recommended_bytes or mac_gpu_bytes(memory_bytes)))


def mac_gpu_bytes(memory_bytes: int) -> int:
    """Return how much memory macOS recommends for the GPU of a Mac: two thirds, or three quarters from 36 GiB on.

    Metal calls it `recommendedMaxWorkingSetSize`; 16, 32 and 64 GiB have 10.67, 21.33 and 48.
    """
    return memory_bytes * 3 // 4 if memory_bytes >= _LARGE_MAC_BYTES else memory_bytes * 2 // 3
