"""Facts about the device that MLX computes on: kind, name, memory, peak rates; and MLX's memory limits."""

from __future__ import annotations

from typing import Literal

import mlx.core as mx
import psutil

from nanochat import runtime

_SHARE_OF_DEVICE = 0.95
"""Default memory limit, as a share of the memory that the device recommends."""

# Peak FLOP/s of dense matrix products, bfloat16 with float32 accumulation first, float32 second.
# NVIDIA: data sheets and architecture white papers (A100, H100, H200, L4, L40S, Ada, Ampere GA102, Blackwell); without
# sparsity, float32 without TF32.
# Apple: GPU cores x 128 lanes x 2 FLOP x clock, as measured by philipturner/metal-benchmarks (M1, M2) and reported by
# techpowerup.com (M3, M4), for the variant with the most cores; bfloat16 runs at the rate of float32.
_PEAK_FLOPS: dict[str, tuple[float, float]] = {
    "H200": (989e12, 67e12),
    "H100 PCIe": (756e12, 51e12),
    "H100 NVL": (835e12, 60e12),
    "H100": (989e12, 67e12),
    "B200": (2250e12, 75e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "L4": (121e12, 30.3e12),
    "RTX 5090": (209.5e12, 104.8e12),
    "RTX 4090": (165.2e12, 82.6e12),
    "RTX 3090": (71e12, 35.6e12),
    "Apple M1 Ultra": (20.9e12, 20.9e12),
    "Apple M1 Max": (10.5e12, 10.5e12),
    "Apple M1 Pro": (5.2e12, 5.2e12),
    "Apple M1": (2.6e12, 2.6e12),
    "Apple M2 Ultra": (27.2e12, 27.2e12),
    "Apple M2 Max": (13.6e12, 13.6e12),
    "Apple M2 Pro": (6.8e12, 6.8e12),
    "Apple M2": (3.6e12, 3.6e12),
    "Apple M3 Ultra": (28.6e12, 28.6e12),
    "Apple M3 Max": (14.3e12, 14.3e12),
    "Apple M3 Pro": (6.4e12, 6.4e12),
    "Apple M3": (3.5e12, 3.5e12),
    "Apple M4 Max": (16.2e12, 16.2e12),
    "Apple M4 Pro": (8.1e12, 8.1e12),
    "Apple M4": (4.0e12, 4.0e12),
}


def select_device(backend: Literal["metal", "cuda", "cpu"]) -> None:
    """Compute on the backend that `runtime.prepare` chose."""
    mx.set_default_device(mx.Device(mx.cpu if backend == "cpu" else mx.gpu))


def runs_on_cpu() -> bool:
    """Return whether MLX computes on the CPU."""
    return bool(mx.default_device().type == mx.DeviceType.cpu)


def device_name() -> str:
    """Return the device's name as its driver gives it, such as `Apple M3 Max` or `NVIDIA H100 80GB HBM3`."""
    return str(mx.device_info(mx.default_device()).get("device_name", "unknown device"))


def memory_bytes() -> int:
    """Return the memory available to arrays: the GPU's, or on a CPU the machine's or the container's."""
    info = mx.device_info(mx.default_device())
    known = (int(info[fact]) for fact in ("memory_size", "total_memory") if fact in info)
    whole = next(known, int(psutil.virtual_memory().total))
    return min(whole, runtime.container_memory_bytes() or whole) if runs_on_cpu() else whole


def recommended_bytes() -> int:
    """Return how much memory MLX should use: Metal's recommended working set, elsewhere all of it."""
    info = mx.device_info(mx.default_device())
    return int(info.get("max_recommended_working_set_size", memory_bytes()))


def peak_bytes() -> int:
    """Return the peak memory of MLX's arrays in this process so far."""
    return int(mx.get_peak_memory())


def apply_memory_limits(limit_bytes: int | None) -> None:
    """Set MLX's memory limits: to `limit_bytes`, or by default to nearly all that the device recommends.

    Call it before creating large arrays. Metal aborts a process that runs out of memory; with a limit, MLX waits for
    memory and reuses it before that happens. The wired limit keeps a model's arrays resident on Metal. On a CPU there
    is no default limit.
    """
    if runs_on_cpu():
        if limit_bytes is not None:
            mx.set_memory_limit(limit_bytes)
        return
    limit = limit_bytes or int(_SHARE_OF_DEVICE * recommended_bytes())
    mx.set_memory_limit(limit)
    mx.set_cache_limit(limit // 2)
    if mx.metal.is_available():
        mx.set_wired_limit(min(limit, recommended_bytes()))


def peak_flops(name: str, dtype: Literal["float32", "bfloat16"]) -> float | None:
    """Return the peak FLOP/s of dense matrix products on a device; None if the table does not contain it."""
    for known, (bfloat16, float32) in _PEAK_FLOPS.items():
        if f" {known} " in f" {name} ":
            return bfloat16 if dtype == "bfloat16" else float32
    return None
