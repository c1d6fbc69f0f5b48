"""The CPU's own loss and gradients equal those that MLX derives from the plain model."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from nanochat.model import dispatch
from nanochat.model.config import GPTConfig
from nanochat.model.cpu.training import mlx_arrays
from nanochat.model.dispatch import FastGPT
from nanochat.model.gpt import GPT
from nanochat.model.low_memory.loss import IGNORED, plain_losses

pytestmark = pytest.mark.cpu

SHAPES = {
    "grouped heads, windows": {"n_head": 4, "n_kv_head": 2, "window_pattern": "SSL"},
    "one head": {"n_head": 1, "n_kv_head": 1, "window_pattern": "L"},
}


def config(architecture, **changes):
    """Rows of 96 tokens are more than one block of queries, and 300 tokens are padded to 320 rows of a table."""
    fields = {"n_layer": 3, "n_embd": 64, "vocab_size": 300, "sequence_len": 96, **SHAPES["grouped heads, windows"]}
    return GPTConfig(architecture=architecture, **{**fields, **changes})


def random_parameters(model):
    """Every weight is random, and so large that the softcap bends the logits and the gates are far from one half."""
    keys = mx.random.split(mx.random.key(5), len(model.named_parameters()))
    shift = {"resid_lambdas": 0.8}
    return {
        name: 0.3 * mx.random.normal(value.shape, key=key) + shift.get(name, 0.0)
        for (name, value), key in zip(model.named_parameters().items(), keys, strict=True)
    }


def batch():
    idx, targets = np.random.default_rng(2).integers(0, 300, (2, 3, 96), dtype=np.int32)
    targets[0, :7] = targets[2] = IGNORED
    return mx.array(idx), mx.array(targets)


def differentiated(config, parameters, scale):
    model, (idx, targets) = GPT(config), batch()

    def loss(parameters):
        model.set_parameters(parameters)
        return plain_losses(model(idx), targets).sum() * scale

    return mx.value_and_grad(loss)(parameters)


def own(config, parameters, scale, *, recomputes=False):
    model = FastGPT(config)
    model.set_activation_checkpointing(recomputes)
    found = dispatch.loss_and_gradients(model, parameters, *batch(), mx.array(scale))
    assert found is not None
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("architecture", ["seed", "current", "portable"])
def test_every_gradient_equals_that_of_the_plain_model(architecture, shape):
    """Norms of differences, relative to the gradient: float32 sums in another order differ by some 1e-6."""
    shaped = config(architecture, **SHAPES[shape])
    parameters = random_parameters(GPT(shaped))
    loss, gradients = differentiated(shaped, parameters, 0.01)
    own_loss, own_gradients = own(shaped, parameters, 0.01)
    assert own_loss.item() == pytest.approx(loss.item(), rel=1e-6)
    assert list(own_gradients) == list(parameters)
    for name, expected in gradients.items():
        found, wanted = np.array(own_gradients[name]), np.array(expected)
        tolerance = 1e-5 if wanted.ndim > 1 else 1e-4  # each number of a vector is one sum that nearly cancels
        assert np.linalg.norm(found - wanted) < tolerance * np.linalg.norm(wanted), name


def test_recomputed_blocks_give_the_same_bits():
    shaped = config("current")
    parameters = random_parameters(GPT(shaped))
    kept, recomputed = (own(shaped, parameters, 1.0, recomputes=flag)[1] for flag in (False, True))
    assert all(mx.array_equal(kept[name], recomputed[name]) for name in parameters)


def test_parameters_are_left_as_they_were():
    """The pass works in place, on the memory of MLX's arrays."""
    shaped = config("current")
    parameters = random_parameters(GPT(shaped))
    before = {name: np.array(value) for name, value in parameters.items()}
    own(shaped, parameters, 1.0)
    assert all(np.array_equal(before[name], np.array(value)) for name, value in parameters.items())


def test_logits_beyond_the_range_of_exponentials_stay_finite():
    """The softcap bounds them at 15; e^(2 x / 15) of a logit before it is infinite from 666 on."""
    shaped = config("seed")
    parameters = random_parameters(GPT(shaped))
    parameters["lm_head.weight"] = 1e4 * parameters["lm_head.weight"]
    loss, gradients = own(shaped, parameters, 1.0)
    expected, _ = differentiated(shaped, parameters, 1.0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert all(mx.isfinite(value).all().item() for value in gradients.values())


@pytest.mark.parametrize("reason", ["no fast BLAS", "bfloat16", "plain model"])
def test_other_models_and_systems_train_by_differentiation(reason, monkeypatch):
    model = GPT(config("seed")) if reason == "plain model" else FastGPT(config("seed"))
    if reason == "bfloat16":
        model.set_compute_dtype(mx.bfloat16)
    monkeypatch.setattr(mlx_arrays, "has_fast_blas", lambda: reason != "no fast BLAS")
    assert dispatch.loss_and_gradients(model, random_parameters(model), *batch(), mx.array(1.0)) is None


def test_blas_of_this_numpy_is_known():
    """Its wheels have one. Without it, training would silently take the slower way."""
    assert mlx_arrays.has_fast_blas()
