"""`nanochat-run verify` passes on a sound machine, and each of its checks notices a fault planted for it."""

from __future__ import annotations

import mlx.core as mx
import pytest

from nanochat.checkpoint import model_folder
from nanochat.errors import StageError
from nanochat.model import gpt
from nanochat.model.config import GPTConfig
from nanochat.optim.optimizer import Optimizer
from nanochat.stages import verify

CONFIG = GPTConfig(sequence_len=32, vocab_size=270, n_layer=2, n_head=2, n_kv_head=1, n_embd=64, window_pattern="SL")


def test_every_check_passes_in_both_architectures():
    """Seven findings, all good, for the seed and for the newer architecture."""
    for architecture in ("seed", "current"):
        config = GPTConfig.from_dict({**CONFIG.to_dict(), "sequence_len": 64, "architecture": architecture})
        findings = verify.verify(config)
        assert len(findings) == 7
        assert all(finding.ok for finding in findings), findings


def _patched(target, name, function):
    def plant(monkeypatch):
        monkeypatch.setattr(target, name, function)

    return plant


_initialise, _logits, _embed, _update = gpt.GPT.initialise, gpt.GPT.logits, gpt.GPT._embed, Optimizer.update


def _without_zeros(model, key):
    _initialise(model, key)
    model.set_parameters({name: array + 1e-3 for name, array in model.named_parameters().items()})


def _sure_of_itself(model, key):
    _initialise(model, key)
    parameters = model.named_parameters()
    model.set_parameters({**parameters, "lm_head.weight": parameters["lm_head.weight"] * 1000})


def _steps_back(optimizer, parameters, gradients, **settings):
    negated = {name: -gradient for name, gradient in gradients.items()}
    return _update(optimizer, parameters, negated, **settings)


def _loads_rounded(folder, dtype=None, *, load=model_folder.load_model):
    model = load(folder)
    rounded = {name: a.astype(mx.bfloat16).astype(mx.float32) for name, a in model.named_parameters().items()}
    model.set_parameters(rounded)
    return model


FAULTS = {
    verify.check_creation: _patched(gpt.GPT, "initialise", _without_zeros),
    verify.check_forward: _patched(gpt.GPT, "logits", lambda self, hidden: 4 * _logits(self, hidden)),
    verify.check_loss: _patched(gpt.GPT, "initialise", _sure_of_itself),
    verify.check_gradients: _patched(gpt.GPT, "_embed", lambda self, *a: mx.stop_gradient(_embed(self, *a))),
    verify.check_step: _patched(Optimizer, "update", _steps_back),
    verify.check_round_trip: _patched(model_folder, "load_model", _loads_rounded),
    verify.check_cache: _patched(gpt.GPT, "_embed", lambda self, i, *a: _embed(self, i, *a) * (1 + 0.01 * i.shape[1])),
}


@pytest.mark.parametrize("check", FAULTS, ids=lambda check: check.__name__)
def test_each_check_notices_its_fault(check, monkeypatch):
    """A check passes, and no longer does once its fault is planted."""
    config = GPTConfig.from_dict({**CONFIG.to_dict(), "sequence_len": 64})
    check(config)
    FAULTS[check](monkeypatch)
    with pytest.raises(StageError):
        check(config)
