"""Facts about the device that MLX computes on: kind, name, memory, peak rates; and MLX's memory limits.

`NANOCHAT_KERNELS=mlx` runs the implementations that Metal uses on any device: they are composed of MLX's own
calls. The tests run Metal's path on a CPU in this way, and on CUDA it shows whether our kernels cause a problem.
"""

from __future__ import annotations

from typing import Literal

import mlx.core as mx
import psutil

from nanochat import runtime

_SHARE_OF_DEVICE = 0.95
"""Default memory limit, as a share of the memory that the device recommends."""

# Peak FLOP/s of dense matrix products, bfloat16 with float32 accumulation first, float32 (without TF32) second. A data
# sheet that gives only the rate with sparsity gives twice the dense one.
# Data centers and workstations: NVIDIA's data sheets, of GB10 the FP4 rate of DGX Spark (1 PFLOP/s, sparse, 8 times
# bfloat16's) and 6,144 lanes at the 2.42 GHz that techpowerup.com lists.
_NVIDIA: dict[str, tuple[float, float]] = {
    "GB200": (2500e12, 80e12),
    "B300": (2250e12, 75e12),
    "B200": (2250e12, 75e12),
    "GB10": (125e12, 29.7e12),
    "GH200": (989e12, 67e12),
    "H200 NVL": (835e12, 60e12),
    "H200": (989e12, 67e12),
    "H100 PCIe": (756e12, 51e12),
    "H100 NVL": (835e12, 60e12),
    "H100": (989e12, 67e12),
    "H800": (989e12, 67e12),
    "H20": (148e12, 44e12),
    "L40S": (362e12, 91.6e12),
    "L40": (181e12, 90.5e12),
    "L4": (121e12, 30.3e12),
    "A100": (312e12, 19.5e12),
    "A800": (312e12, 19.5e12),
    "A40": (149.7e12, 37.4e12),
    "A30": (165e12, 10.3e12),
    "A10G": (70e12, 35e12),
    "A10": (125e12, 31.2e12),
    "RTX PRO 6000 Blackwell Workstation Edition": (503.8e12, 125e12),
    "RTX 6000 Ada Generation": (364.2e12, 91.1e12),
    "RTX 5000 Ada Generation": (261.1e12, 65.3e12),
    "RTX 4500 Ada Generation": (158.5e12, 39.6e12),
    "RTX 4000 Ada Generation": (106.9e12, 26.7e12),
    "RTX A6000": (154.8e12, 38.7e12),
    "RTX A5500": (136.4e12, 34.1e12),
    "RTX A5000": (111.1e12, 27.8e12),
    "RTX A4500": (94.6e12, 23.7e12),
    "RTX A4000": (76.7e12, 19.2e12),
}
# GeForce: TFLOP/s in float32, which are CUDA cores x 2 x boost clock of NVIDIA's specifications. With float32
# accumulation the tensor cores reach twice that (white papers of GA102, Ada and RTX Blackwell: 71, 165.2 and 209.5 for
# the three largest).
_GEFORCE_FLOAT32 = {
    "RTX 5090": 104.8,
    "RTX 5080": 56.3,
    "RTX 5070 Ti": 43.9,
    "RTX 5070": 30.9,
    "RTX 5060 Ti": 23.7,
    "RTX 5060": 19.2,
    "RTX 4090": 82.6,
    "RTX 4080 SUPER": 52.2,
    "RTX 4080": 48.7,
    "RTX 4070 Ti SUPER": 44.1,
    "RTX 4070 Ti": 40.1,
    "RTX 4070 SUPER": 35.5,
    "RTX 4070": 29.1,
    "RTX 4060 Ti": 22.1,
    "RTX 4060": 15.1,
    "RTX 3090 Ti": 40.0,
    "RTX 3090": 35.6,
    "RTX 3080 Ti": 34.1,
    "RTX 3080": 29.8,
    "RTX 3070 Ti": 21.7,
    "RTX 3070": 20.3,
    "RTX 3060 Ti": 16.2,
    "RTX 3060": 12.7,
}
# Apple: TFLOP/s in float32, GPU cores x 128 lanes x 2 FLOP x clock, for the variant with the most cores. Clocks were
# measured by philipturner/metal-benchmarks (M1, M2), reported by techpowerup.com (M3, M4), and measured as 1,578 MHz by
# michaelstinkerings.org for M5. M5 Pro and Max are counted at that clock, with 20 and 40 cores (Apple).
_APPLE_FLOAT32 = {
    "M1 Ultra": 20.9,
    "M1 Max": 10.5,
    "M1 Pro": 5.2,
    "M1": 2.6,
    "M2 Ultra": 27.2,
    "M2 Max": 13.6,
    "M2 Pro": 6.8,
    "M2": 3.6,
    "M3 Ultra": 28.6,
    "M3 Max": 14.3,
    "M3 Pro": 6.4,
    "M3": 3.5,
    "M4 Max": 16.2,
    "M4 Pro": 8.1,
    "M4": 4.0,
    "M5 Max": 16.2,
    "M5 Pro": 8.1,
    "M5": 4.04,
}
# Up to M4, bfloat16 runs at the rate of float32. A core of M5 has a matrix unit of 1,024 FLOP per cycle, four times its
# 128 lanes: Apple says "over 4x" of M4, which has as many cores.
_PEAK_FLOPS: dict[str, tuple[float, float]] = {
    **_NVIDIA,
    **{name: (2e12 * rate, 1e12 * rate) for name, rate in _GEFORCE_FLOAT32.items()},
    **{
        f"Apple {name}": ((4e12 if name.startswith("M5") else 1e12) * rate, 1e12 * rate)
        for name, rate in _APPLE_FLOAT32.items()
    },
}
_OTHER_RATE = {"Laptop", "Max-Q", "MIG", "D"}
"""Words in the names of slower variants, whose rates are not in the table."""


def select_device(backend: runtime.Backend) -> None:
    """Compute on the backend that `runtime.prepare` chose."""
    mx.set_default_device(mx.Device(mx.cpu if backend == "cpu" else mx.gpu))


def implementation() -> runtime.Backend:
    """Return whose implementations run: the device's own, or Metal's where `NANOCHAT_KERNELS` says so."""
    if runtime.uses_only_mlx():
        return "metal"
    if _is_cpu():
        return "cpu"
    return "cuda" if computes_on_cuda() else "metal"


def runs_on_cpu() -> bool:
    """Return whether the implementations for a CPU run."""
    return implementation() == "cpu"


def runs_kernels() -> bool:
    """Return whether our CUDA kernels run."""
    return implementation() == "cuda"


def computes_on_cuda() -> bool:
    """Return whether MLX computes on an NVIDIA GPU, whatever implementations run."""
    return not _is_cpu() and bool(mx.cuda.is_available())


def _is_cpu() -> bool:
    """Return whether MLX computes on the CPU, whatever implementations run."""
    return bool(mx.default_device().type == mx.DeviceType.cpu)


def device_name() -> str:
    """Return the device's name as its driver gives it, such as `Apple M3 Max` or `NVIDIA H100 80GB HBM3`."""
    return str(mx.device_info(mx.default_device()).get("device_name", "unknown device"))


def memory_bytes() -> int:
    """Return the memory available to arrays: the GPU's, or on a CPU the machine's or the container's."""
    info = mx.device_info(mx.default_device())
    known = (int(info[fact]) for fact in ("memory_size", "total_memory") if fact in info)
    whole = next(known, int(psutil.virtual_memory().total))
    return min(whole, runtime.container_memory_bytes() or whole) if _is_cpu() else whole


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
    if _is_cpu():
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
    if _OTHER_RATE.intersection(name.split()):
        return None
    words = " ".join(name.replace("-", " ").split())  # as in NVIDIA A100-SXM4-80GB
    known = [device for device in _PEAK_FLOPS if f" {device} " in f" {words} "]
    if not known:
        return None
    bfloat16, float32 = _PEAK_FLOPS[max(known, key=len)]
    return bfloat16 if dtype == "bfloat16" else float32
