"""The whole optimizer: the golden training run, and a restored state that continues bit for bit."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.nn.utils import value_and_grad
from mlx.utils import tree_flatten

from nanochat.errors import StageError
from nanochat.model.config import GPTConfig
from nanochat.model.dispatch import FastGPT, summed_loss
from nanochat.optim.groups import OptimizerConfig, build_groups
from nanochat.optim.optimizer import Optimizer

GOLDEN = Path(__file__).parents[1] / "golden"
RUN = json.loads((GOLDEN / "seed_c1_train.json").read_text())


def seed_c1():
    tensors = mx.load(str(GOLDEN / "seed_c1.safetensors"))
    config = GPTConfig(**json.loads((GOLDEN / "seed_c1.json").read_text())["config"])
    model = FastGPT(config)
    model.set_parameters({name: tensors[name].astype(mx.float32) for name in config.parameter_shapes()})
    groups = build_groups(config, OptimizerConfig(), tokens_per_step=2**17)
    return model, groups, tensors["in.idx"], tensors["in.targets"]


def loss_and_gradients(model, idx, targets):
    count = (targets != -1).sum()
    loss, tree = value_and_grad(model, lambda *a: summed_loss(model, *a) / count)(idx, targets)
    return loss, dict(tree_flatten(tree))


@pytest.mark.parametrize("beta2_of", ["plain", "current"])
def test_six_training_steps(beta2_of):
    """Losses before each step and after the last step, and the final norms, are within 1e-4.

    Both runs use the older table of rates; `current` here is Muon's newer rule.
    """
    expected = RUN["variants"][beta2_of]
    model, groups, idx, targets = seed_c1()
    if beta2_of == "current":
        current = build_groups(model.config, OptimizerConfig(variant="current"), tokens_per_step=2**19)
        groups = tuple(next(c for c in current if c.role == g.role) if g.kind == "muon" else g for g in groups)
    optimizer = Optimizer(groups, model.named_parameters())
    losses = []
    for _ in range(6):
        loss, gradients = loss_and_gradients(model, idx, targets)
        decay = expected["muon_weight_decay"]
        options = {"lr_multiplier": 1.0, "momentum": RUN["muon"]["momentum"], "weight_decay": decay}
        model.set_parameters(optimizer.update(model.named_parameters(), gradients, **options))
        losses.append(loss.item())
    losses.append(loss_and_gradients(model, idx, targets)[0].item())
    assert losses == pytest.approx(expected["losses"], rel=1e-4)
    norms = {name: float(np.linalg.norm(np.array(p, np.float64))) for name, p in model.named_parameters().items()}
    assert norms == pytest.approx(expected["final_parameter_norms"], rel=1e-4)


def test_lr_multiplier_scales_adamw_steps():
    """At step 1 without decay, |change| is the learning rate wherever there is a gradient."""
    model, groups, idx, targets = seed_c1()
    parameters = model.named_parameters()
    _, gradients = loss_and_gradients(model, idx, targets)
    optimizer = Optimizer(groups, parameters)
    updated = optimizer.update(parameters, gradients, lr_multiplier=0.25, momentum=0.9, weight_decay=0.0)
    for name, lr in {"resid_lambdas": 0.005, "x0_lambdas": 0.5, "lm_head.weight": 0.004 * (64 / 768) ** -0.5}.items():
        # Gradients of 1e-9 and less come near eps; parameters near 1 round the change by 6e-8.
        change = np.abs(np.array(updated[name] - parameters[name]))[np.abs(np.array(gradients[name])) > 1e-6]
        assert change == pytest.approx(np.full(change.shape, 0.25 * lr), rel=1e-3)


def test_restored_state_continues_bit_for_bit():
    """Two steps equal one step, a copy of the state in a new optimizer, and a second step."""
    model, groups, idx, targets = seed_c1()
    _, gradients = loss_and_gradients(model, idx, targets)
    options = {"lr_multiplier": 1.0, "momentum": 0.95, "weight_decay": 0.1}
    through = Optimizer(groups, model.named_parameters())
    first = through.update(model.named_parameters(), gradients, **options)
    saved = dict(through.state)
    second = through.update(first, gradients, **options)
    resumed = Optimizer(groups, model.named_parameters())
    resumed.load_state(saved)
    again = resumed.update(first, gradients, **options)
    assert all(mx.array_equal(second[name], again[name]) for name in second)
    fresh = Optimizer(groups, model.named_parameters()).update(first, gradients, **options)
    assert not mx.array_equal(second["lm_head.weight"], fresh["lm_head.weight"])


def test_foreign_state_is_refused():
    model, groups, _, _ = seed_c1()
    optimizer = Optimizer(groups, model.named_parameters())
    state = {name: x for name, x in optimizer.state.items() if name != "x0_lambdas.first_moment"}
    with pytest.raises(StageError, match=r"x0_lambdas.first_moment do not fit"):
        optimizer.load_state(state)
