"""The three architectures of the GPT: the constants and the optional parts in which they differ. No MLX.

`seed` is NanoChat MLX, and `current` is nanochat as of 2026-07. `portable` is nanochat as of 2025-10, which mlx-lm and
transformers call `nanochat`: `seed` without value embeddings, residual lambdas and short windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Architecture = Literal["seed", "current", "portable"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The constants and optional parts that differ between architectures. The defaults are those of `seed`."""

    norm_eps: float = 1e-6
    rope_base: float = 10_000.0
    qk_scale: float = 1.0
    """Factor on q and on k after their norm."""
    gate_channels: int = 32
    """The value gate reads this many leading channels of a block's normed input."""
    gate_scale: float = 2.0
    """The value gate is gate_scale * sigmoid(...)."""
    has_smear: bool = False
    has_backout: bool = False
    has_value_embeddings: bool = True
    has_residual_lambdas: bool = True
    """Whether each block's input is resid_lambda * x + x0_lambda * x0; otherwise it is x."""
    has_short_windows: bool = True

    @property
    def default_window_pattern(self) -> str:
        return "SSSL" if self.has_short_windows else "L"


VARIANTS: dict[Architecture, Variant] = {
    "seed": Variant(),
    "current": Variant(
        norm_eps=2.0**-23,  # the machine epsilon of float32
        rope_base=100_000.0,
        qk_scale=1.2,
        gate_channels=12,
        gate_scale=3.0,
        has_smear=True,
        has_backout=True,
    ),
    "portable": Variant(
        norm_eps=1e-5,  # mlx-lm's model has no other; transformers reads it from its config
        gate_channels=0,
        has_value_embeddings=False,
        has_residual_lambdas=False,
        has_short_windows=False,
    ),
}
