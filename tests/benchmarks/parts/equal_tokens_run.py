"""One training run of `equal_tokens.py`, and the rows that it trains and is measured on.

Imports neither this project nor MLX, because the process of the peer has neither.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, SupportsFloat

import numpy as np
import numpy.typing as npt

System = Literal["plain", "current", "peer"]
Ints = npt.NDArray[np.int32]

ROWS_FILE, HELD_OUT_FILE = "rows.npy", "held_out.npz"
PROGRESS = "step "
"""The beginning of the lines that a run prints before its result."""
LAST_STEPS = 10
"""The training loss of a run is the mean over these."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that the process of a run needs."""

    system: System
    depth: int
    seed: int
    steps: int
    warmup_steps: int
    weight_decay: float
    projections: float
    """Size of the first output projections relative to the other matrices. A new model's are 0."""
    tokens_per_step: int
    micro_batch_size: int
    vocab_size: int
    data: str
    """The folder with the rows."""
    peer: str
    """The folder of PyTorch nanochat."""

    def batches(self) -> Iterator[Ints]:
        """Yield the tokens of each step, (rows, T + 1)."""
        rows = np.load(Path(self.data) / ROWS_FILE, mmap_mode="r")
        count = self.tokens_per_step // (rows.shape[1] - 1)
        for step in range(self.steps):
            yield np.array(rows[step * count : (step + 1) * count])

    @property
    def initial_weights(self) -> Path:
        """The file with the weights that `current` and `peer` of this depth and seed start from."""
        return Path(self.data) / f"initial_d{self.depth}_seed{self.seed}.npz"

    def print_progress(self, losses: Sequence[SupportsFloat]) -> None:
        """Print the loss after the first step and after each tenth of the run."""
        done = len(losses)
        if done == 1 or done % max(1, self.steps // 10) == 0:
            print(f"{PROGRESS}{done} of {self.steps}: loss {float(losses[-1]):.5f}", flush=True)

    def held_out(self) -> HeldOut:
        """Return the held-out rows."""
        with np.load(Path(self.data) / HELD_OUT_FILE) as file:
            return HeldOut(**file)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Rows for bits per byte, both (N, T) int32 with targets of -1 that do not count, and the bytes of each token."""

    inputs: Ints
    targets: Ints
    token_bytes: Ints


@dataclass(frozen=True, kw_only=True)
class Result:
    """Bits per byte on the held-out rows, the loss of every step in nats per token, and the time that the run took."""

    bpb: float
    losses: list[float]
    seconds: float

    @property
    def train_loss(self) -> float:
        """The mean loss of the last steps."""
        return statistics.mean(self.losses[-LAST_STEPS:])

    @property
    def curve(self) -> str:
        """The mean losses of the ten tenths of the run."""
        parts = np.array_split(np.array(self.losses), min(10, len(self.losses)))
        return " ".join(f"{part.mean():.3f}" for part in parts)
