"""The assumed speed of each class of device: FLOPs and bytes per second, and the time to start."""

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
    overhead = 2e-4 * config.n_layer
    return tokens / rows * (overhead + weights / RATES[device].bytes_per_second)
