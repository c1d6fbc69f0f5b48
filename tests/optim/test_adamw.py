"""AdamW compared with the golden file, and special cases."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from nanochat.optim.adamw import adamw_update

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "adamw.json").read_text())["cases"]


def run_steps(tensors, case, dtype=mx.float32):
    options = CASES[case] | {"betas": tuple(CASES[case]["betas"])}
    p = tensors["p0"].astype(dtype)
    m = v = mx.zeros(p.shape)
    for step in (1, 2, 3):
        p, m, v = adamw_update(p, tensors[f"grad{step}"].astype(dtype), m, v, step=mx.array(float(step)), **options)
        yield p, m, v


def assert_close(found, expected):
    found, expected = np.array(found, dtype=np.float64), np.array(expected, dtype=np.float64)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("case", CASES)
def test_three_steps(case):
    """Parameters and both moments are within 1e-5 after each step."""
    tensors = mx.load(str(GOLDEN / "adamw.safetensors"))
    for step, (p, m, v) in enumerate(run_steps(tensors, case), start=1):
        assert_close(p, tensors[f"{case}.p{step}"])
        assert_close(m, tensors[f"{case}.exp_avg{step}"])
        assert_close(v, tensors[f"{case}.exp_avg_sq{step}"])


def test_bfloat16_parameters_are_updated_in_float32():
    """From bfloat16 values, the result is the float32 result, rounded once; moments stay float32."""
    tensors = mx.load(str(GOLDEN / "adamw.safetensors"))
    rounded = {k: x.astype(mx.bfloat16).astype(mx.float32) for k, x in tensors.items()}
    exact, _, _ = next(run_steps(rounded, "wd01"))
    found, m, v = next(run_steps(rounded, "wd01", dtype=mx.bfloat16))
    assert (found.dtype, m.dtype, v.dtype) == (mx.bfloat16, mx.float32, mx.float32)
    assert mx.array_equal(found, exact.astype(mx.bfloat16))
