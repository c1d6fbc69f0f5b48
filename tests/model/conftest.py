"""Golden model files as fixtures, and a model of each architecture whose every weight is random."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    facts: dict[str, Any]  # parsed JSON


def read_golden(name: str, make_model: type[GPT]) -> GoldenModel:
    facts = json.loads((GOLDEN / f"{name}.json").read_text())
    tensors = mx.load(str(GOLDEN / f"{name}.safetensors"))
    assert isinstance(tensors, dict)
    model = make_model(GPTConfig(architecture=facts["architecture"], **facts["config"]))
    names = model.config.parameter_shapes()
    model.set_parameters({name: tensors[name].astype(mx.float32) for name in names})
    return GoldenModel(model, {k: np.array(v) for k, v in tensors.items() if k not in names}, facts)


@pytest.fixture(params=["seed_c1", "seed_c2", "current_d1", "portable_p1"])
def golden_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["reference", "fast", pytest.param("metal", marks=pytest.mark.cpu)])
def golden(golden_name: str, request: pytest.FixtureRequest) -> GoldenModel:
    """Every golden file with the written-out reference model, the device's fast one, and the one that Metal runs."""
    if request.param == "metal":
        request.getfixturevalue("metal_path")
    return read_golden(golden_name, GPT if request.param == "reference" else FastGPT)


@pytest.fixture(params=["seed", "current", "portable"])
def random_model(request: pytest.FixtureRequest, make_random_model: Callable[..., GPT]) -> GPT:
    """A 4-layer model with grouped queries whose every weight is random, the scalars too."""
    return make_random_model(request.param)
