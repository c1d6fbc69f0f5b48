"""Fakes for training: a tiny model with random weights, rows with unequal masks, an optimizer that only records."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from nanochat.data.loaders.batches import Batch
from nanochat.model.config import GPTConfig
from nanochat.model.dispatch import FastGPT
from nanochat.train.step import NamedArrays


class RecordingOptimizer:
    """Records the gradients and changes nothing."""

    def __init__(self) -> None:
        self.gradients: NamedArrays = {}
        self.arrays: list[mx.array] = []

    def update(self, parameters: NamedArrays, gradients: NamedArrays, **rates: float | mx.array | None) -> NamedArrays:
        self.gradients = gradients
        return parameters


def random_model(config: GPTConfig) -> FastGPT:
    model = FastGPT(config)
    shapes = config.parameter_shapes().items()
    keys = mx.random.split(mx.random.key(0), len(shapes))
    # 0.3 keeps activations of a narrow model in range and leaves no projection at zero.
    weights = {name: 0.3 * mx.random.normal(shape, key=key) for (name, shape), key in zip(shapes, keys, strict=True)}
    model.set_parameters(weights)
    return model


def random_batch(config: GPTConfig, rows: int) -> Batch:
    """Rows whose share of ignored targets grows from none to nearly all."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, config.vocab_size, (rows, config.sequence_len + 1), dtype=np.int32)
    targets = tokens[:, 1:].copy()
    for row in range(rows):
        targets[row, : row * (config.sequence_len - 1) // max(rows - 1, 1)] = -1
    return Batch(tokens[:, :-1], targets)


@pytest.fixture
def config() -> GPTConfig:
    return GPTConfig(sequence_len=16, vocab_size=50, n_layer=2, n_head=2, n_kv_head=1, n_embd=32, window_pattern="SL")


@pytest.fixture
def fakes() -> dict[str, Callable[..., object]]:
    """This module's fakes, for test files that cannot import it."""
    return {"batch": random_batch, "model": random_model, "optimizer": RecordingOptimizer, "rows": Batch}
