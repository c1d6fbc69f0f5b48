"""Tests of one optimizer step: its gradients, its memory, its update, and two processes that share it."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from nanochat.errors import StageError
from nanochat.model.config import GPTConfig
from nanochat.model.device import runs_kernels, runs_on_cpu
from nanochat.model.dispatch import FastGPT, working_parameters
from nanochat.optim.groups import OptimizerConfig, build_groups
from nanochat.optim.optimizer import Optimizer
from nanochat.train.step import Rates, TrainStep

GOLDEN = Path(__file__).parent.parent / "golden"
RATES = Rates(lr_multiplier=1.0, momentum=0.9, weight_decay=0.0)


def relative_error(got, expected):
    got, expected = np.array(got, dtype=np.float64), np.array(expected, dtype=np.float64)
    return np.abs(got - expected).max() / max(np.abs(expected).max(), 1e-30)


def golden_case(fakes):
    golden = mx.load(str(GOLDEN / "seed_c1.safetensors"))
    config = GPTConfig(
        sequence_len=32, vocab_size=257, n_layer=4, n_head=4, n_kv_head=4, n_embd=64, window_pattern="SSSL"
    )
    model = FastGPT(config)
    model.set_parameters({name: golden[name].astype(mx.float32) for name in config.parameter_shapes()})
    batch = fakes["rows"](np.array(golden["in.idx"]), np.array(golden["in.targets"]))
    return golden, model, batch


@pytest.mark.usefixtures("_each_path")
@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_step_computes_the_reference_loss_and_gradients(fakes, micro_batch_size):
    """Tolerances of the golden files: 1e-5 for the loss, 1e-4 of the largest entry for gradients."""
    golden, model, batch = golden_case(fakes)
    optimizer = fakes["optimizer"]()
    result = TrainStep(model, optimizer, micro_batch_size=micro_batch_size).run(batch, rates=RATES)
    valid = (batch.targets != -1).sum(axis=1)
    assert valid[0] != valid[1], "rows with equal masks cannot distinguish a mean of means from the mean"
    assert result.valid_tokens == valid.sum() == 51
    assert abs(result.loss.item() - golden["out.loss"].item()) <= 1e-5 * golden["out.loss"].item()
    for name, gradient in optimizer.gradients.items():
        assert relative_error(gradient, golden[f"grad.{name}"]) <= 1e-4, name
    squares = sum(float((np.array(golden[f"grad.{n}"], np.float64) ** 2).sum()) for n in optimizer.gradients)
    assert result.grad_norm.item() == pytest.approx(squares**0.5, rel=1e-4)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 4, 6])
def test_step_accumulates_the_gradients_of_the_full_batch(fakes, config, micro_batch_size):
    """Masks are unequal, and the last micro-batch may have fewer rows (3 and 4 of 7).

    Float32 rounds at 6e-8; x0's gradients are sums of 3,584 products that nearly cancel.
    """
    batch, whole, parts = fakes["batch"](config, 7), fakes["optimizer"](), fakes["optimizer"]()
    full = TrainStep(fakes["model"](config), whole, micro_batch_size=7).run(batch, rates=RATES)
    split = TrainStep(fakes["model"](config), parts, micro_batch_size=micro_batch_size).run(batch, rates=RATES)
    assert split.loss.item() == pytest.approx(full.loss.item(), rel=1e-6)
    for name, gradient in whole.gradients.items():
        assert relative_error(parts.gradients[name], gradient) <= 3e-5, name


def test_step_of_eight_micro_batches_needs_the_memory_of_one(fakes):
    """The peak is within 10 %. Sums that are not evaluated would keep every micro-batch's activations.

    Another thread frees buffers, so a single peak varies by 8 %, and by more on a GPU, which is given work ahead. The
    test therefore takes the largest peak of a few steps.
    """
    config = GPTConfig(sequence_len=128, vocab_size=256, n_layer=2, n_head=2, n_kv_head=2, n_embd=64)
    peaks = {}
    for micro_batches in (1, 8):
        step = TrainStep(fakes["model"](config), fakes["optimizer"](), micro_batch_size=8)
        batch = fakes["batch"](config, 8 * micro_batches)
        step.run(batch, rates=RATES)
        mx.clear_cache()
        mx.reset_peak_memory()
        for _ in range(5):
            step.run(batch, rates=RATES)
        peaks[micro_batches] = mx.get_peak_memory()
    assert peaks[8] <= (1.1 if runs_on_cpu() else 1.5) * peaks[1]


def test_step_passes_its_rates_to_the_update(fakes, config):
    """Weights and moments equal those of the optimizer called directly with the same rates; each rate matters."""
    name, batch, recorded = "transformer.h.0.mlp.c_fc.weight", fakes["batch"](config, 4), fakes["optimizer"]()
    TrainStep(fakes["model"](config), recorded, micro_batch_size=4).run(batch, rates=RATES)
    groups = build_groups(config, OptimizerConfig(), tokens_per_step=64)

    def direct_update(rates):
        weights = fakes["model"](config).named_parameters()
        optimizer = Optimizer(groups, weights)
        updated = optimizer.update(weights, recorded.gradients, **asdict(rates))
        return updated[name], optimizer.state[f"{name}.first_moment"]

    model = fakes["model"](config)
    optimizer = Optimizer(groups, model.named_parameters())
    rates = Rates(lr_multiplier=0.3, momentum=0.7, weight_decay=0.5)
    TrainStep(model, optimizer, micro_batch_size=4).run(batch, rates=rates)
    found = (model.named_parameters()[name], optimizer.state[f"{name}.first_moment"])
    assert max(map(relative_error, found, direct_update(rates))) < 1e-5
    for other in ({"lr_multiplier": 1.0}, {"momentum": 0.95}, {"weight_decay": 0.0}):
        assert max(map(relative_error, found, direct_update(replace(rates, **other)))) > 1e-3, other


@pytest.mark.usefixtures("_each_path")
def test_step_that_is_not_finite_changes_nothing(fakes, config):
    model, batch = fakes["model"](config), fakes["batch"](config, 2)
    optimizer = Optimizer(build_groups(config, OptimizerConfig(), tokens_per_step=32), model.named_parameters())
    step = TrainStep(model, optimizer, micro_batch_size=1)
    assert step.run(batch, rates=RATES).is_applied
    weights = model.named_parameters()
    weights["x0_lambdas"] = mx.array([float("inf"), 1.0])
    model.set_parameters(weights)
    state = {name: np.array(value) for name, value in optimizer.state.items()}
    result = step.run(batch, rates=RATES)
    assert not result.is_applied
    for name, value in model.named_parameters().items():
        np.testing.assert_array_equal(np.array(value), np.array(weights[name]), err_msg=name)
    for name, value in optimizer.state.items():
        np.testing.assert_array_equal(np.array(value), state[name], err_msg=name)


def test_working_parameters_are_matrices_in_the_compute_dtype(fakes, config):
    """Vectors keep their float32, and so do embedding tables if the CUDA forward pass rounds the rows that it reads."""
    model = fakes["model"](config)
    parameters = model.named_parameters()
    model.set_compute_dtype(mx.bfloat16)
    for name, array in working_parameters(model, parameters).items():
        is_read_by_row = runs_kernels() and name.startswith(("transformer.wte.", "value_embeds."))
        exact = array.ndim == 1 or is_read_by_row
        assert array.dtype == (mx.float32 if exact else mx.bfloat16), name


def test_step_refuses_a_batch_without_a_scored_target(fakes, config):
    batch = fakes["batch"](config, 2)
    masked = fakes["rows"](batch.inputs, np.full_like(batch.targets, -1))
    with pytest.raises(StageError, match="no target"):
        TrainStep(fakes["model"](config), fakes["optimizer"](), micro_batch_size=2).run(masked, rates=RATES)


TWO_PROCESSES = """
import sys, numpy as np
from nanochat import runtime
runtime.prepare(device="cpu")
import mlx.core as mx
sys.path.insert(0, {tests!r})
from conftest import RecordingOptimizer, random_batch, random_model, Batch
from nanochat.model.config import GPTConfig
from nanochat.optim.muon import sharded_polar_express, polar_express
from nanochat.train.step import Rates, TrainStep
world = mx.distributed.init(strict=True)
config = GPTConfig(**{config!r})
batch = random_batch(config, 6)
others = (batch.targets[1 - world.rank()::2] >= 0).sum()
mine = Batch(batch.inputs[world.rank()::2], batch.targets[world.rank()::2], elsewhere_tokens=int(others))
optimizer = RecordingOptimizer()
step = TrainStep(random_model(config), optimizer, micro_batch_size=2, world=world)
stack = mx.random.normal((5, 8, 12), key=mx.random.key(1)) / 10
iterated = mx.array_equal(sharded_polar_express(stack, group=world), polar_express(stack))
result = step.run(mine, rates=Rates(1.0, 0.9, 0.0), votes=lambda: (True, world.rank() == 1, False))
np.savez({out!r} + str(world.rank()), loss=np.array(result.loss), tokens=result.valid_tokens,
         votes=np.array(result.votes), iterated=np.array(iterated),
         **{{name: np.array(value) for name, value in optimizer.gradients.items()}})
"""


def test_two_processes_compute_the_step_of_one(fakes, config, tmp_path, start_ring):
    """Two ranks with unequal numbers of valid tokens compute the loss, token count and gradients of the whole step.

    Their votes are counted, and Muon's iteration of an odd stack, divided between the two, gives the same result.
    """
    names = {"tests": str(Path(__file__).parent), "config": config.to_dict(), "out": str(tmp_path / "rank")}
    command = [sys.executable, "-c", TWO_PROCESSES.format(**names)]
    assert [process.wait(timeout=120) for process in start_ring(command, command)] == [0, 0]
    whole = fakes["optimizer"]()
    full = TrainStep(fakes["model"](config), whole, micro_batch_size=6).run(fakes["batch"](config, 6), rates=RATES)
    for rank in (0, 1):
        got = np.load(tmp_path / f"rank{rank}.npz")
        assert int(got["tokens"]) == full.valid_tokens
        assert bool(got["iterated"])
        assert got["votes"].tolist() == [2, 1, 0]
        assert float(got["loss"]) == pytest.approx(full.loss.item(), rel=1e-6)
        for name, gradient in whole.gradients.items():
            assert relative_error(got[name], gradient) <= 1e-5, name
