"""The table of faults fits the source: a fault that is no longer there to plant would be noticed by nobody."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def load_plant():
    spec = importlib.util.spec_from_file_location("mutants_plant", HERE / "plant.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


plant = load_plant()
FAULTS = plant.read_faults()

# What the tests of earlier systems let pass, and the traps that their code fell into.
REQUIRED = (
    "no causal mask",
    "window ignored",
    "RoPE off",
    "linear MLP",
    "no softcap",
    "no value embeddings",
    "ignore_index broken",
    "cached RoPE offset 0",
    "sign instead of polar",
    "step 36 times too large",
    "no bias correction",
    "LR updates without effect",
    "no weight decay",
    "unshifted targets",
    "training on user tokens",
    "bpb in another base",
    "optimizer state not restored",
    "forced-token mask",
    "tool injection",
    "CORE argmax",
    "loader shift",
    "bfloat16 activations promoted to float32",
    "windows from the default sequence length",
    "RoPE tables in bfloat16",
    "value embeddings in Muon",
    "mean of micro-batch means",
    "accumulated gradients never evaluated",
    "bpb as a mean of loss per byte of each token",
    "SFT answer not supervised",
    "too long a conversation",
    "top-k threshold from the largest value",
    "half a character streamed",
    "special strings in text become special ids",
    "NorMuon does not restore the norm",
    "validation documents in training",
    "packing buffer lost on resume",
    "RNG keys lost",
    "`--seed` ignored",
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.title)
def test_a_fault_can_be_planted_in_exactly_one_place(fault):
    """The text is there once, what comes in its place compiles and is another program, and its tests exist."""
    source = (plant.ROOT / "nanochat" / fault.file).read_text()
    planted = fault.planted(source)
    assert compile(planted, fault.file, "exec") != compile(source, fault.file, "exec")
    assert fault.tests
    for test in fault.tests:
        path, _, name = test.partition("::")
        assert (plant.ROOT / "tests" / path).exists(), test
        assert not name or f"def {name.partition('[')[0]}(" in (plant.ROOT / "tests" / path).read_text(), test


def test_every_known_fault_is_in_the_table_and_none_twice():
    assert {fault.name for fault in FAULTS} >= set(REQUIRED)
    assert len({fault.title for fault in FAULTS}) == len(FAULTS)
    assert len({(fault.file, fault.old, fault.new) for fault in FAULTS}) == len(FAULTS)
