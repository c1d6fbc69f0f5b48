"""The forward pass and its gradients against the golden files, in the reference and the fast model; dtypes; weights."""

import math

import mlx.core as mx
import numpy as np
import pytest
from mlx.nn.utils import value_and_grad
from mlx.utils import tree_flatten

from nanochat.checkpoint.safetensors_file import read_weights
from nanochat.errors import StageError
from nanochat.model import gpt
from nanochat.model.config import GPTConfig
from nanochat.model.dispatch import FastGPT, attention, summed_loss, token_losses

RELATIVE = 1e-4  # the golden files' tolerance, of the reference's largest absolute value


def assert_close(found, expected, relative=RELATIVE):
    found = np.asarray(found, dtype=np.float64)
    assert found.shape == expected.shape
    difference = np.abs(found - expected).max()
    assert difference <= relative * np.abs(expected).max(), difference


def test_logits(golden):
    logits = golden.model(mx.array(golden.tensors["in.idx"]))
    assert logits.dtype == mx.float32
    assert_close(logits, golden.tensors["out.logits"])


def test_losses(golden):
    """Losses per position, 0 where the target is ignored, and the mean over the counted targets."""
    idx, targets = mx.array(golden.tensors["in.idx"]), mx.array(golden.tensors["in.targets"])
    assert_close(token_losses(golden.model, idx, targets), golden.tensors["out.losses"])
    mean = summed_loss(golden.model, idx, targets).item() / golden.facts["n_counted_targets"]
    assert mean == pytest.approx(golden.tensors["out.loss"].item(), rel=1e-5)


def test_residual_stream(golden):
    """The stream after the embedding, after each block and after the final norm has the golden values."""
    stream = [np.array(x) for x in golden.model.residual_stream(mx.array(golden.tensors["in.idx"]))]
    names = ["embed", *(f"block{i}" for i in range(golden.model.config.n_layer)), "final"]
    positions = golden.tensors["trace.positions"]
    for name, x in zip(names, stream, strict=True):
        assert_close(x[:, positions], golden.tensors[f"trace.{name}"])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients(golden, checkpointing):
    """The gradients of the mean loss for every parameter, also when blocks are recomputed."""
    golden.model.set_activation_checkpointing(checkpointing)
    idx, targets = mx.array(golden.tensors["in.idx"]), mx.array(golden.tensors["in.targets"])
    count = golden.facts["n_counted_targets"]
    _, tree = value_and_grad(golden.model, lambda *a: summed_loss(golden.model, *a) / count)(idx, targets)
    gradients = dict(tree_flatten(tree))
    assert set(gradients) == set(golden.model.config.parameter_shapes())
    for name, gradient in gradients.items():
        _assert_gradient(golden, name, np.array(gradient, dtype=np.float64))


def _assert_gradient(golden, name, gradient):
    stored = golden.tensors.get(f"grad.{name}")
    if stored is not None:
        assert_close(gradient, stored)
    row = golden.tensors.get(f"gradfp_row.{name}")
    if row is not None:
        matrix = gradient if gradient.ndim == 2 else gradient[None]
        assert_close(matrix @ np.sin(np.arange(matrix.shape[1]) + 1.0), row)
        assert_close(np.cos(np.arange(matrix.shape[0]) + 1.0) @ matrix, golden.tensors[f"gradfp_col.{name}"])
    assert stored is not None or row is not None
    assert np.linalg.norm(gradient) == pytest.approx(golden.facts["grad_norm"][name], rel=RELATIVE)


@pytest.mark.parametrize("case", ["greedy", "greedy_long"])
def test_greedy_continuation(golden, case):
    """Each token is the argmax of the logits before it, which are the golden ones. One causal pass gives them all."""
    prompt, tokens = (golden.tensors[f"{case}.{name}"].tolist() for name in ("prompt", "tokens"))
    logits = np.array(golden.model(mx.array([prompt + tokens[:-1]]))[0, len(prompt) - 1 :])
    assert logits.argmax(axis=-1).tolist() == tokens
    assert_close(logits, golden.tensors[f"{case}.logits"])


def test_bfloat16_is_not_promoted(random_model):
    """The residual stream is bfloat16 everywhere; weights stay float32; logits are float32 and near the exact ones."""
    idx = mx.random.randint(0, 100, (2, 32), key=mx.random.key(1))
    exact = random_model(idx)
    random_model.set_compute_dtype(mx.bfloat16)
    assert {x.dtype for x in random_model.residual_stream(idx)} == {mx.bfloat16}
    logits = random_model(idx)
    assert logits.dtype == mx.float32
    assert {p.dtype for p in random_model.named_parameters().values()} == {mx.float32}
    # bfloat16 has 8 bits; a few layers of rounding add up to some per cent of the logits' spread.
    assert mx.abs(logits - exact).mean().item() < 0.05 * mx.std(exact).item()


@pytest.mark.parametrize("attend", [attention, gpt.attention])
def test_bfloat16_activations_reach_every_matmul(random_model, monkeypatch, attend):
    """No linear map and no attention receives anything wider than bfloat16."""
    dtypes = []
    linear = gpt.Linear.__call__
    monkeypatch.setattr(gpt.Linear, "__call__", lambda self, x: (dtypes.append(x.dtype), linear(self, x))[1])
    spy = lambda q, k, v, **rest: (dtypes.extend([q.dtype, k.dtype, v.dtype]), attend(q, k, v, **rest))[1]  # noqa: E731
    model = gpt.GPT(random_model.config, spy)
    model.set_parameters(random_model.named_parameters())
    model.set_compute_dtype(mx.bfloat16)
    mx.eval(model(mx.zeros((1, 8), dtype=mx.int32)))
    assert set(dtypes) == {mx.bfloat16}


@pytest.mark.parametrize("architecture", ["seed", "current"])
def test_every_position_of_every_layer_sees_its_window_and_no_more(architecture, make_random_model):
    """Position t of a layer depends on each of the inputs at t - window to t, and on no other."""
    length = {"seed": 32, "current": 140}[architecture]  # short windows of 16 and of 128
    model = make_random_model(architecture, sequence_len=length)
    assert model.config.windows == ({"seed": 16, "current": 128}[architecture],) * 3 + (length,)
    x = mx.random.normal((1, length, 64), key=mx.random.key(1))
    one_changed = mx.repeat(x, length, axis=0) + mx.eye(length)[..., None]  # row j differs at position j
    query, key = np.arange(length)[None, :], np.arange(length)[:, None]
    for window, block in zip(model.config.windows, model.transformer.h, strict=True):
        block.attn.c_q.weight *= 0  # all visible keys have equal weight
        rows = None if not hasattr(block.attn, "ve_gate") else mx.zeros((1, length, 32))
        attend = lambda x, attn=block.attn, rows=rows: attn(x, rows)  # noqa: E731
        moved = np.array(mx.abs(attend(one_changed) - attend(x)).max(axis=-1))
        assert not ((moved > 1e-5) & (moved < 1e-3)).any(), "rounding errors and effects differ by orders of magnitude"
        depends = moved > 1e-4
        assert (depends == ((query >= key) & (query - key <= window))).all()
        assert depends.sum(axis=0).tolist() == [min(t, window) + 1 for t in range(length)]


def initial_model(seed=0, **changes):
    model = FastGPT(GPTConfig(n_layer=3, n_embd=192, n_head=3, n_kv_head=3, vocab_size=2048, **changes))
    model.initialise(mx.random.key(seed))
    return model


def test_initial_values_of_the_seed():
    """Each kind of weight has the architecture's standard deviation; the sampling error is below 3 % at these sizes."""
    model = initial_model()
    spread = {name: np.array(p).std() for name, p in model.named_parameters().items()}
    uniform = 192**-0.5
    expected_spread = {"transformer.wte.weight": 1.0, "lm_head.weight": 0.001, "value_embeds.0.weight": uniform}
    expected_spread |= {f"transformer.h.1.{name}.weight": uniform for name in ("attn.c_q", "attn.c_k", "attn.c_v")}
    expected_spread |= {"transformer.h.1.mlp.c_fc.weight": uniform, "transformer.h.2.attn.ve_gate.weight": 0.0}
    expected_spread |= {f"transformer.h.1.{name}.c_proj.weight": 0.0 for name in ("attn", "mlp")}
    for name, expected in expected_spread.items():
        assert spread[name] == pytest.approx(expected, rel=0.03), name
    largest = mx.abs(model.transformer.h[0].mlp.c_fc.weight).max().item()
    assert 0.98 * math.sqrt(3 / 192) < largest <= math.sqrt(3 / 192)
    assert model.resid_lambdas.tolist() == [1, 1, 1]
    assert model.x0_lambdas.tolist() == pytest.approx([0.1] * 3)


def test_initial_values_of_the_current_architecture():
    model = initial_model(architecture="current")
    assert mx.std(model.transformer.wte.weight).item() == pytest.approx(0.8, rel=0.03)
    assert mx.std(model.transformer.h[0].mlp.c_fc.weight).item() == pytest.approx(0.4 * 192**-0.5, rel=0.03)
    assert mx.mean(model.transformer.h[0].attn.ve_gate.weight).item() == pytest.approx(0.01, rel=0.4)
    gates = np.concatenate([np.ravel(model.smear_gate.weight), np.ravel(model.transformer.h[0].attn.ve_gate.weight)])
    assert gates.min() >= 0 and 0.015 < gates.max() <= 0.02
    assert model.resid_lambdas.tolist() == pytest.approx([1.15, 1.10, 1.05])
    assert model.x0_lambdas.tolist() == pytest.approx([0.20, 0.125, 0.05])
    assert (model.smear_lambda.item(), model.backout_lambda.item()) == (0, pytest.approx(0.2))


def test_initial_values_follow_the_key():
    """Equal keys give equal weights and different keys different ones; no two matrices are equal."""
    same, again, other = (initial_model(seed).named_parameters() for seed in (0, 0, 1))
    assert all(mx.array_equal(same[name], again[name]) for name in same)
    assert not mx.array_equal(same["transformer.wte.weight"], other["transformer.wte.weight"])
    assert not mx.array_equal(same["transformer.h.0.attn.c_q.weight"], same["transformer.h.0.attn.c_k.weight"])


def test_weights_are_loaded_strictly(random_model, tmp_path):
    """A complete file is loaded; a missing name, an unknown name and a wrong shape are refused and named."""
    weights = random_model.named_parameters()
    mx.save_safetensors(str(tmp_path / "right.safetensors"), weights)
    fresh = FastGPT(random_model.config)
    fresh.set_parameters(read_weights(tmp_path / "right.safetensors", fresh.config))
    assert all(mx.array_equal(p, weights[name]) for name, p in fresh.named_parameters().items())
    missing = {name: p for name, p in weights.items() if name != "lm_head.weight"}
    for broken, words in [
        (missing, r"missing \['lm_head.weight'\]"),
        (weights | {"extra": mx.zeros((1,))}, r"unknown \['extra'\]"),
        (weights | {"lm_head.weight": mx.zeros((3, 64))}, r"`lm_head.weight` has shape \(3, 64\)"),
    ]:
        with pytest.raises(StageError, match=words):
            fresh.set_parameters(broken)
