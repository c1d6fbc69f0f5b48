"""The assumed speed of each class of device, its time to start, and how much of its memory a stage may use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nanochat.model.config import GPTConfig
from nanochat.plan.estimate.memory.sizes import VALUE_BYTES, Dtype

DeviceClass = Literal["cpu", "metal", "cuda"]

TOKENIZER_CHARS_PER_SECOND = 6.4e6
"""SentencePiece BPE training, 32 MB in 5 s on one core."""
STARTUP_SECONDS: dict[DeviceClass, float] = {"cpu": 1.0, "metal": 3.0, "cuda": 20.0}
"""From the start of a child process to its first step: imports, weights, compiled kernels."""
_USABLE_FRAC = 0.8
"""Share of the memory that `micro_batch_size: auto` plans to use. The allocator's slack needs the rest."""
_METAL_USABLE_FRAC = 0.9
"""Share of the memory that macOS recommends for the GPU, beyond which a process may be aborted."""
_LARGE_MAC_BYTES = 36 * 2**30
_LAYER_SECONDS: dict[DeviceClass, float] = {"cpu": 2e-4, "metal": 2e-4, "cuda": 7.5e-5}
"""Time of a layer in a decoding step, beyond reading its weights. Fitted to 885 to 1,072 tokens per second with one row
and 31,722 to 34,020 with 32 rows on H100s, at the speedrun's size (tests/benchmarks/results/gpu_inference.md), and to
825 with one row on a CPU, at the quickstart's size (cpu.md). Assumed for Metal."""


@dataclass(frozen=True)
class Rate:
    """The assumed speed of a class of device."""

    flops_per_second: float
    bytes_per_second: float
    """Memory bandwidth, which limits decoding."""
    basis: str
    """Where the numbers come from, for the notes of the plan."""


RATES: dict[DeviceClass, Rate] = {
    "cpu": Rate(4.0e10, 8e9, "one x86-64 core: 40 GFLOP/s, measured at the quickstart's size"),
    "metal": Rate(5.0e12, 2e11, "an Apple M-series Pro or Max: 5 TFLOP/s, assumed"),
    "cuda": Rate(3.0e14, 2e12, "one H100: 300 TFLOP/s, of 311 to 328 measured at the 286M size"),
}


def decode_seconds(config: GPTConfig, tokens: int, rows: int, dtype: Dtype, device: DeviceClass) -> float:
    """Return the time to decode `tokens` tokens, `rows` at a time: the weights are read once per step."""
    weights = config.num_scaling_parameters() * VALUE_BYTES[dtype]
    return tokens / rows * (_LAYER_SECONDS[device] * config.n_layer + weights / RATES[device].bytes_per_second)


def usable_bytes(device: DeviceClass, memory_bytes: int, *, recommended_bytes: int | None = None) -> int:
    """Return how many of `memory_bytes`, a device's memory, `auto` plans to use.

    `recommended_bytes` is what Metal recommends for the GPU, if that is known.
    """
    if device != "metal":
        return int(_USABLE_FRAC * memory_bytes)
    return int(_METAL_USABLE_FRAC * (recommended_bytes or mac_gpu_bytes(memory_bytes)))


def mac_gpu_bytes(memory_bytes: int) -> int:
    """Return how much memory macOS recommends for the GPU of a Mac: two thirds, or three quarters from 36 GiB on.

    Metal calls it `recommendedMaxWorkingSetSize`; 16, 32 and 64 GiB have 10.67, 21.33 and 48.
    """
    return memory_bytes * 3 // 4 if memory_bytes >= _LARGE_MAC_BYTES else memory_bytes * 2 // 3
