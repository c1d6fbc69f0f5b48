"""The chunked losses equal the written-out cross-entropy, in values, gradients and memory."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.nn.utils import value_and_grad
from mlx.utils import tree_flatten

from nanochat.model import loss
from nanochat.model.cpu import fast_math
from nanochat.model.loss import plain_nats, summed_nats, token_nats


@pytest.fixture(params=["cpu", "gpu"])
def form(request, monkeypatch):
    """Both backends' elementwise forms, with chunks of about 7 rows, computed here."""
    monkeypatch.setattr(loss, "runs_on_cpu", lambda: request.param == "cpu")
    monkeypatch.setattr(fast_math, "BLOCK_ELEMENTS", 700)
    monkeypatch.setattr(loss, "_GPU_CHUNK_ELEMENTS", 700)


def batch(vocab_size=100):
    idx = mx.random.randint(0, vocab_size, (3, 32), key=mx.random.key(1))
    targets = mx.random.randint(0, vocab_size, (3, 32), key=mx.random.key(2))
    targets = mx.where(mx.random.uniform(shape=(3, 32), key=mx.random.key(3)) < 0.3, -1, targets)
    targets[:, 10:20] = -1  # a chunk with no target at all
    return idx, targets


def gradients(model, function, *arguments):
    value, tree = value_and_grad(model, function)(*arguments)
    return value, dict(tree_flatten(tree))


def test_plain_form_against_numpy():
    logits = np.random.default_rng(0).normal(size=(5, 9)).astype(np.float32) * 4
    targets = np.array([3, -1, 0, 8, -1])
    probability = np.exp(logits.astype(np.float64))
    probability /= probability.sum(axis=1, keepdims=True)
    expected = [0 if t < 0 else -np.log(probability[i, t]) for i, t in enumerate(targets)]
    assert np.allclose(plain_nats(mx.array(logits), mx.array(targets)), expected, rtol=1e-5)


@pytest.mark.usefixtures("form")
def test_values(random_model):
    idx, targets = batch()
    expected = np.array(plain_nats(random_model(idx), targets))
    found = np.array(token_nats(random_model, idx, targets))
    assert found.shape == (3, 32)
    assert np.abs(found - expected).max() < 1e-5
    assert (found[np.array(targets) == -1] == 0).all()
    assert summed_nats(random_model, idx, targets).item() == pytest.approx(expected.sum(), rel=1e-6)


@pytest.mark.usefixtures("form")
def test_gradients(random_model):
    """Of the mean over counted targets, for every parameter, as of the written-out form."""
    idx, targets = batch()
    count = (targets != -1).sum()
    _, expected = gradients(random_model, lambda *a: plain_nats(random_model(a[0]), a[1]).sum() / count, idx, targets)
    _, found = gradients(random_model, lambda *a: summed_nats(random_model, *a) / count, idx, targets)
    for name, gradient in expected.items():
        difference = mx.abs(found[name] - gradient).max().item()
        assert difference <= 2e-5 * mx.abs(gradient).max().item(), name


def test_no_target_at_all_gives_zero_and_no_gradient(random_model):
    idx, targets = batch()
    value, found = gradients(random_model, lambda *a: summed_nats(random_model, *a), idx, mx.full(targets.shape, -1))
    assert value.item() == 0
    assert all(mx.abs(gradient).max().item() == 0 for gradient in found.values())


def test_evaluation_loss_refuses_a_gradient(random_model):
    """Its fast exponentials would have a wrong one."""
    with pytest.raises(AssertionError, match="train on summed_nats"):
        gradients(random_model, lambda *a: token_nats(random_model, *a).sum(), *batch())


@pytest.mark.cpu
def test_logits_are_never_all_alive(make_random_model):
    """4,096 rows of 4,096 logits would be 64 MiB each time they are held."""
    model = make_random_model("seed", vocab_size=4096, n_layer=1, n_embd=32, n_head=1, n_kv_head=1, sequence_len=256)
    idx, targets = (mx.random.randint(0, 4096, (16, 256), key=mx.random.key(i)) for i in (1, 2))
    mx.eval(idx, targets, model.parameters())
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(gradients(model, lambda *a: summed_nats(model, *a), idx, targets))
    assert mx.get_peak_memory() - before < 48 * 2**20


def test_bfloat16_gradients_have_the_weights_dtype(random_model):
    """float32 master weights get float32 gradients, near the exact ones."""
    idx, targets = batch()
    _, exact = gradients(random_model, lambda *a: summed_nats(random_model, *a), idx, targets)
    random_model.set_compute_dtype(mx.bfloat16)
    _, found = gradients(random_model, lambda *a: summed_nats(random_model, *a), idx, targets)
    assert {gradient.dtype for gradient in found.values()} == {mx.float32}
    a, b = (np.ravel(np.array(g["lm_head.weight"])) for g in (found, exact))
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.99
