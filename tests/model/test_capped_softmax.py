"""What a softcapped softmax says of targets equals float64 arithmetic on the written-out formula."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from nanochat.model import capped_softmax
from nanochat.model.config import SOFTCAP


@pytest.fixture(params=["cpu", "gpu"])
def judged(request, monkeypatch):
    """Both backends' forms, computed here."""
    monkeypatch.setattr(capped_softmax, "runs_on_cpu", lambda: request.param == "cpu")
    return capped_softmax.judged


@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0, 1e4])
def test_targets_are_judged_as_the_formula_says(judged, scale):
    """From flat logits to ones far beyond the cap; float32's noise at 15 is 1e-6."""
    generator = np.random.default_rng(0)
    hidden = generator.normal(size=(40, 16)).astype(np.float32)
    weight = generator.normal(size=(50, 16), scale=scale / 4).astype(np.float32)
    raw = (hidden @ weight.T).astype(np.float64)
    logits = SOFTCAP * np.tanh(raw / SOFTCAP)
    expected = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    targets = np.where(np.arange(40) % 2, raw.argmax(axis=-1), generator.integers(0, 50, size=40))
    found, is_likeliest = judged(mx.array(hidden), mx.array(weight), mx.array(targets))
    np.testing.assert_allclose(np.array(found), expected[np.arange(40), targets], atol=5e-6, rtol=1e-6)
    if scale < 100:  # beyond, many are the cap itself
        assert np.array(is_likeliest).tolist() == (raw.argmax(axis=-1) == targets).tolist()


def test_the_first_of_equal_tokens_is_the_likeliest(judged):
    weight = mx.array([[0.0, 1.0], [2.0, 1.0], [2.0, 1.0], [1.0, 1.0]])
    found, is_likeliest = judged(mx.array([[3.0, 1.0]] * 4), weight, mx.arange(4))
    assert np.array(is_likeliest).tolist() == [False, True, False, False]
    assert found[1].item() == found[2].item()
