"""Golden model files as fixtures, and models whose every weight is random."""

import json
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from nanochat.model.config import GPTConfig
from nanochat.model.dispatch import FastGPT
from nanochat.model.gpt import GPT

GOLDEN = Path(__file__).parents[1] / "golden"


@dataclass
class GoldenModel:
    model: GPT
    tensors: dict[str, np.ndarray]
    facts: dict[str, object]


def read_golden(name, make_model):
    facts = json.loads((GOLDEN / f"{name}.json").read_text())
    tensors = mx.load(str(GOLDEN / f"{name}.safetensors"))
    model = make_model(GPTConfig(architecture=facts["architecture"], **facts["config"]))
    names = model.config.parameter_shapes()
    model.set_parameters({name: tensors[name].astype(mx.float32) for name in names})
    return GoldenModel(model, {k: np.array(v) for k, v in tensors.items() if k not in names}, facts)


@pytest.fixture(params=["seed_c1", "seed_c2", "current_d1"])
def golden_name(request):
    return request.param


@pytest.fixture(params=[GPT, FastGPT], ids=["reference", "fast"])
def golden(golden_name, request):
    """Every golden file with the written-out reference model and with the device's fast one."""
    return read_golden(golden_name, request.param)


@pytest.fixture(params=["seed", "current"])
def random_model(request):
    """A 4-layer model with grouped queries whose every weight is random, the scalars too."""
    return randomised(request.param)


@pytest.fixture(scope="session")
def make_random_model():
    return randomised


def randomised(architecture, *, make_model=FastGPT, **shape):
    shape = {"sequence_len": 32, "vocab_size": 100, "n_layer": 4, "n_head": 4, "n_kv_head": 2, "n_embd": 64} | shape
    model = make_model(GPTConfig(architecture=architecture, **shape))
    keys = mx.random.split(mx.random.key(7), len(model.config.parameter_shapes()))
    drawn = {}
    for key, (name, size) in zip(keys, model.config.parameter_shapes().items(), strict=True):
        scale = size[-1] ** -0.5 if len(size) == 2 else 0.5
        drawn[name] = mx.random.normal(size, scale=scale, key=key)
    drawn["transformer.wte.weight"] *= 8
    drawn["lm_head.weight"] *= 4
    model.set_parameters(drawn)
    return model
