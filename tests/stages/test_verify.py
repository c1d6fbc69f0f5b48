"""Tests of `nanochat-run verify`: it passes on a working machine, and every check detects a fault planted for it."""

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


def test_verify_passes_all_seven_checks_in_both_architectures():
    for architecture in ("seed", "current"):
        config = GPTConfig.from_dict({**CONFIG.to_dict(), "sequence_len": 64, "architecture": architecture})
        results = verify.run_checks(config)
        assert len(results) == 7
        assert all(result.passed for result in results), results


def _patched(target, name, function):
    def plant(monkeypatch):
        monkeypatch.setattr(target, name, function)

    return plant


_initialise, _logits, _embed, _update = gpt.GPT.initialise, gpt.GPT.logits, gpt.GPT.embed, Optimizer.update


def _without_zeros(model, key):
    _initialise(model, key)
    model.set_parameters({name: array + 1e-3 for name, array in model.named_parameters().items()})


def _overconfident(model, key):
    _initialise(model, key)
    parameters = model.named_parameters()
    model.set_parameters({**parameters, "lm_head.weight": parameters["lm_head.weight"] * 1000})


def _uphill(optimizer, parameters, gradients, **settings):
    negated = {name: -gradient for name, gradient in gradients.items()}
    return _update(optimizer, parameters, negated, **settings)


def _load_rounded(folder, dtype=None, *, load=model_folder.load_model):
    model = load(folder)
    rounded = {name: a.astype(mx.bfloat16).astype(mx.float32) for name, a in model.named_parameters().items()}
    model.set_parameters(rounded)
    return model


FAULTS = {
    verify.check_initial_weights: _patched(gpt.GPT, "initialise", _without_zeros),
    verify.check_logits: _patched(gpt.GPT, "logits", lambda self, hidden: 4 * _logits(self, hidden)),
    verify.check_untrained_loss: _patched(gpt.GPT, "initialise", _overconfident),
    verify.check_gradients: _patched(gpt.GPT, "embed", lambda self, *a: mx.stop_gradient(_embed(self, *a))),
    verify.check_optimizer: _patched(Optimizer, "update", _uphill),
    verify.check_round_trip: _patched(model_folder, "load_model", _load_rounded),
    verify.check_kv_cache: _patched(
        gpt.GPT, "embed", lambda self, i, *a: _embed(self, i, *a) * (1 + 0.01 * i.shape[1])
    ),
}


@pytest.mark.parametrize("check", FAULTS, ids=lambda check: check.__name__)
def test_verify_check_detects_its_fault(check, monkeypatch):
    config = GPTConfig.from_dict({**CONFIG.to_dict(), "sequence_len": 64})
    check(config)
    FAULTS[check](monkeypatch)
    with pytest.raises(StageError):
        check(config)
