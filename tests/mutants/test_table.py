"""Every fault of the table still fits the source: its function exists, its pattern matches once, its tests exist."""

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


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_can_be_planted_in_exactly_one_place(fault):
    source = (plant.ROOT / "nanochat" / fault.file).read_text()
    planted = fault.planted(source)
    assert compile(planted, fault.file, "exec") != compile(source, fault.file, "exec")
    assert fault.tests
    for test in fault.tests:
        path, _, name = test.partition("::")
        assert (plant.ROOT / "tests" / path).exists(), test
        assert not name or f"def {name.partition('[')[0]}(" in (plant.ROOT / "tests" / path).read_text(), test


def test_fault_names_and_places_are_unique():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert len({(fault.file, fault.function, fault.pattern, fault.new) for fault in FAULTS}) == len(FAULTS)
