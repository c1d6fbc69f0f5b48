"""Facts about the device that MLX computes on: kind, name, memory, peak rates; and MLX's memory limits."""

from __future__ import annotations

import mlx.core as mx


def runs_on_cpu() -> bool:
    """Return whether arrays are computed on the CPU; what is fastest there differs from a GPU."""
    return mx.default_device().type == mx.DeviceType.cpu
