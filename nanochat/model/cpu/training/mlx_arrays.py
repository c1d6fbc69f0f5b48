"""Loss and gradients of a model in MLX's arrays, computed by `gradients` in NumPy on the same memory."""

from __future__ import annotations

from functools import cache
from typing import cast

import mlx.core as mx
import numpy as np

from nanochat.model.config import GPTConfig
from nanochat.model.cpu.training.gradients import TrainingPass

_FAST_BLAS = ("openblas", "mkl", "accelerate")


@cache
def has_fast_blas() -> bool:
    """Return whether NumPy was built with an optimised BLAS, as its wheels are; some systems build it without."""
    built = np.show_config(mode="dicts")
    assert built is not None, "NumPy returns its configuration in this mode"
    name = str(built["Build Dependencies"]["blas"].get("name", "")).lower()
    return any(fast in name for fast in _FAST_BLAS)


def loss_and_gradients(
    config: GPTConfig,
    parameters: dict[str, mx.array],
    idx: mx.array,
    targets: mx.array,
    scale: mx.array,
    *,
    recomputes: bool,
) -> tuple[mx.array, dict[str, mx.array]]:
    """Return `scale` times the summed loss of tokens (B, T), float32, and the gradient of every parameter.

    `scale` is a number, or one for each target (B, T).
    """
    mx.eval(parameters, idx, targets, scale)
    weights = {name: np.array(value, copy=False) for name, value in parameters.items()}
    tokens, wanted = np.array(idx, copy=False), np.array(targets, copy=False)
    training_pass = TrainingPass(config, weights, tokens, wanted, recomputes=recomputes)
    loss = training_pass.run(np.array(scale, copy=False).reshape(-1) if scale.ndim else cast(float, scale.item()))
    gradients = training_pass.gradients
    return mx.array(loss), {name: mx.array(gradients.pop(name)) for name in parameters}
