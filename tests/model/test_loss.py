"""The chunked losses equal the written-out cross-entropy, in values, gradients and memory."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.nn.utils import value_and_grad
from mlx.utils import tree_flatten

from nanochat.model import dispatch
from nanochat.model.config import SOFTCAP
from nanochat.model.cpu import softcap_loss as cpu_loss
from nanochat.model.dispatch import runs_cuda_forward, summed_loss, token_logprobs, token_losses
from nanochat.model.low_memory import loss
from nanochat.model.low_memory.loss import plain_losses


@pytest.fixture(params=[cpu_loss.KERNELS, loss.KERNELS], ids=["cpu", "metal"])
def _kernels(request, monkeypatch):
    """Both kernels in plain MLX, with chunks of about 7 rows, computed here."""
    monkeypatch.setattr(dispatch, "runs_kernels", lambda: False)
    monkeypatch.setattr(dispatch, "_loss_kernels", lambda: request.param._replace(chunk_elements=700))


def batch(vocab_size=100):
    idx = mx.random.randint(0, vocab_size, (3, 32), key=mx.random.key(1))
    targets = mx.random.randint(0, vocab_size, (3, 32), key=mx.random.key(2))
    targets = mx.where(mx.random.uniform(shape=(3, 32), key=mx.random.key(3)) < 0.3, -1, targets)
    targets[:, 10:20] = -1  # a chunk with no target at all
    return idx, targets


def gradients(model, function, *arguments):
    value, tree = value_and_grad(model, function)(*arguments)
    return value, dict(tree_flatten(tree))


@pytest.mark.usefixtures("_kernels")
def test_values(random_model):
    idx, targets = batch()
    expected = np.array(plain_losses(random_model(idx), targets))
    found = np.array(token_losses(random_model, idx, targets))
    assert found.shape == (3, 32)
    assert np.abs(found - expected).max() < 1e-5
    assert (found[np.array(targets) == -1] == 0).all()
    assert summed_loss(random_model, idx, targets).item() == pytest.approx(expected.sum(), rel=1e-6)


@pytest.mark.usefixtures("_kernels")
def test_gradients(random_model):
    """The gradients of the mean over counted targets are those of the written-out form, for every parameter."""
    idx, targets = batch()
    count = (targets != -1).sum()
    _, expected = gradients(random_model, lambda *a: plain_losses(random_model(a[0]), a[1]).sum() / count, idx, targets)
    _, found = gradients(random_model, lambda *a: summed_loss(random_model, *a) / count, idx, targets)
    for name, gradient in expected.items():
        difference = mx.abs(found[name] - gradient).max().item()
        assert difference <= 2e-5 * mx.abs(gradient).max().item(), name


@pytest.mark.usefixtures("_kernels")
def test_weights_multiply_each_loss_and_its_gradient(random_model):
    """Weights of both signs and zeros, in several chunks."""
    idx, targets = batch()
    weights = mx.random.normal(targets.shape, key=mx.random.key(4)) * (mx.arange(32) % 5 > 0)
    written_out = lambda *a: (plain_losses(random_model(a[0]), a[1]) * weights).sum()  # noqa: E731
    expected_value, expected = gradients(random_model, written_out, idx, targets)
    value, found = gradients(random_model, lambda *a: summed_loss(random_model, *a, weights), idx, targets)
    assert value.item() == pytest.approx(expected_value.item(), rel=1e-4)
    for name, gradient in expected.items():
        difference = mx.abs(found[name] - gradient).max().item()
        assert difference <= 2e-5 * mx.abs(gradient).max().item(), name


def test_logprobs_are_those_of_the_logits(random_model):
    idx, targets = batch()
    expected = -np.array(plain_losses(random_model(idx), targets))
    assert np.abs(np.array(token_logprobs(random_model, idx, targets)) - expected).max() < 1e-5


def test_no_target_at_all_gives_zero_and_no_gradient(random_model):
    idx, targets = batch()
    value, found = gradients(random_model, lambda *a: summed_loss(random_model, *a), idx, mx.full(targets.shape, -1))
    assert value.item() == 0
    assert all(mx.abs(gradient).max().item() == 0 for gradient in found.values())


def test_evaluation_loss_refuses_a_gradient(random_model):
    """The fast exponentials would give a wrong gradient."""
    with pytest.raises(AssertionError, match="train on summed_loss"):
        gradients(random_model, lambda *a: token_losses(random_model, *a).sum(), *batch())


@pytest.mark.cpu
def test_logits_are_never_all_alive(make_random_model):
    """One array of all logits, 4,096 rows of 4,096, would take 64 MiB."""
    model = make_random_model("seed", vocab_size=4096, n_layer=1, n_embd=32, n_head=1, n_kv_head=1, sequence_len=256)
    idx, targets = (mx.random.randint(0, 4096, (16, 256), key=mx.random.key(i)) for i in (1, 2))
    mx.eval(idx, targets, model.parameters())
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(gradients(model, lambda *a: summed_loss(model, *a), idx, targets))
    assert mx.get_peak_memory() - before < 48 * 2**20


def test_bfloat16_gradients_have_the_weights_dtype(random_model):
    """float32 master weights get float32 gradients that are close to the exact ones.

    CUDA's kernels read rows of float32 tables and round them, so gradients of tables have the compute dtype there.
    """
    idx, targets = batch()
    _, exact = gradients(random_model, lambda *a: summed_loss(random_model, *a), idx, targets)
    random_model.set_compute_dtype(mx.bfloat16)
    _, found = gradients(random_model, lambda *a: summed_loss(random_model, *a), idx, targets)
    of_tables = mx.bfloat16 if runs_cuda_forward(random_model) else mx.float32
    for name, gradient in found.items():
        assert gradient.dtype == (of_tables if "wte" in name or "value_embeds" in name else mx.float32), name
    a, b = (np.ravel(np.array(g["lm_head.weight"])) for g in (found, exact))
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.99


@pytest.fixture(params=[cpu_loss.target_logprobs, loss.target_logprobs], ids=["cpu", "gpu"])
def target_logprobs(request):
    return request.param


@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0, 1e4])
def test_target_logprobs_follow_the_formula(target_logprobs, scale):
    """Logits range from flat to far beyond the cap; float32 rounds a logit of 15 to 1e-6."""
    generator = np.random.default_rng(0)
    hidden = generator.normal(size=(40, 16)).astype(np.float32)
    weight = generator.normal(size=(50, 16), scale=scale / 4).astype(np.float32)
    raw = (hidden @ weight.T).astype(np.float64)
    logits = SOFTCAP * np.tanh(raw / SOFTCAP)
    expected = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    targets = np.where(np.arange(40) % 2, raw.argmax(axis=-1), generator.integers(0, 50, size=40))
    found, is_likeliest = target_logprobs(mx.array(hidden), mx.array(weight), mx.array(targets))
    np.testing.assert_allclose(np.array(found), expected[np.arange(40), targets], atol=5e-6, rtol=1e-6)
    if scale < 100:  # with larger logits, many are the cap itself
        assert np.array(is_likeliest).tolist() == (raw.argmax(axis=-1) == targets).tolist()


def test_target_logprobs_call_the_first_of_equal_tokens_the_likeliest(target_logprobs):
    weight = mx.array([[0.0, 1.0], [2.0, 1.0], [2.0, 1.0], [1.0, 1.0]])
    found, is_likeliest = target_logprobs(mx.array([[3.0, 1.0]] * 4), weight, mx.arange(4))
    assert np.array(is_likeliest).tolist() == [False, True, False, False]
    assert found[1].item() == found[2].item()
