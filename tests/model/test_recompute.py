"""Recomputed and ordered blocks save memory and leave the model unchanged; test_gpt compares the gradients."""

import mlx.core as mx
import pytest
from mlx.nn.utils import value_and_grad

from nanochat.model.dispatch import summed_loss
from nanochat.model.layers import squared_relu
from nanochat.model.low_memory import recompute


def peak_bytes(model, idx):
    function = value_and_grad(model, lambda x: summed_loss(model, x, x))
    mx.eval(function(idx))
    model.set_parameters({name: p * 1 for name, p in model.named_parameters().items()})
    mx.eval(model.parameters())
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(function(idx))
    return mx.get_peak_memory() - before


@pytest.mark.cpu
def test_only_one_blocks_activations_are_alive(make_random_model):
    """Eight blocks take little more memory than one: only the streams between them are kept."""
    model = make_random_model("seed", n_layer=8, sequence_len=128)
    idx = mx.random.randint(0, 100, (8, 128), key=mx.random.key(0))
    kept = peak_bytes(model, idx)
    model.set_activation_checkpointing(True)
    assert peak_bytes(model, idx) < 0.55 * kept


@pytest.mark.cpu
def test_backward_pass_keeps_little(make_random_model, monkeypatch):
    """Ordered weight gradients and a squared ReLU that keeps its output save a fifth, for which both are needed."""
    model = make_random_model("seed", n_layer=8, sequence_len=64)
    idx = mx.random.randint(0, 100, (8, 64), key=mx.random.key(0))
    kept = peak_bytes(model, idx)
    monkeypatch.setattr(recompute, "ordered", lambda block, *inputs: block(*inputs))
    unordered = peak_bytes(model, idx)
    for block in model.transformer.h:
        monkeypatch.setattr(block.mlp, "_activate", squared_relu)
    assert kept < 0.96 * unordered
    assert kept < 0.8 * peak_bytes(model, idx)


@pytest.mark.cpu
@pytest.mark.usefixtures("metal_path")
@pytest.mark.parametrize("recomputes", [False, True])
def test_training_on_metal_never_holds_the_scores_of_all_pairs(make_random_model, recomputes):
    """Memory grows with the length of the rows, and not with its square."""

    def peak(length):
        shape = {"sequence_len": length, "n_layer": 2, "n_head": 1, "n_kv_head": 1, "n_embd": 32}
        model = make_random_model("seed", window_pattern="L", **shape)
        model.set_activation_checkpointing(recomputes)
        return peak_bytes(model, mx.random.randint(0, 100, (1, length), key=mx.random.key(0)))

    assert peak(1536) < 2.6 * peak(768)


def test_squared_relu_has_the_gradient_of_its_formula():
    x = 3 * mx.random.normal((40, 50), key=mx.random.key(0))
    weights = mx.random.normal(x.shape, key=mx.random.key(1))
    found = mx.grad(lambda x: (recompute.squared_relu(x) * weights).sum())(x)
    assert mx.abs(found - 2 * mx.maximum(x, 0) * weights).max().item() < 1e-5


@pytest.mark.usefixtures("_each_path")
def test_the_model_keeps_its_weights(random_model):
    """The blocks hold their own weights again afterwards, not the tracer's arrays."""
    idx = mx.random.randint(0, 100, (2, 32), key=mx.random.key(0))
    before, logits = random_model.named_parameters(), random_model(idx)
    random_model.set_activation_checkpointing(True)
    random_model(idx)
    after = random_model.named_parameters()
    assert all(after[name] is before[name] for name in before)
    assert mx.allclose(random_model(idx), logits, atol=1e-4)  # on a GPU kept blocks go through kernels
