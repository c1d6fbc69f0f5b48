"""Bits per byte is the ratio of two sums over the same targets."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

from nanochat.evals import bits_per_byte
from nanochat.evals.bits_per_byte import evaluate_bpb
from nanochat.model.config import GPTConfig
from nanochat.model.dispatch import FastGPT
from nanochat.model.low_memory.loss import plain_losses

GOLDEN = Path(__file__).parents[1] / "golden"
RESULTS = json.loads((GOLDEN / "bits_per_byte.json").read_text())["results_by_batches_used"]


@dataclass(frozen=True)
class Rows:
    inputs: np.ndarray
    targets: np.ndarray


@pytest.mark.parametrize("used", RESULTS)
def test_bpb_equals_the_golden_results(used, monkeypatch):
    """The inputs hold the number of the batch, by which the fake model finds its logits."""
    golden = load_file(GOLDEN / "bits_per_byte.safetensors")
    numbers = [int(number) for number in used.split(",")]
    batches = [Rows(np.full((2, 9), n, dtype=np.int32), golden["targets"][n]) for n in numbers]

    def losses(_: None, idx: mx.array, targets: mx.array) -> mx.array:
        return plain_losses(mx.array(golden["logits"][idx[0, 0].item()]), targets)

    monkeypatch.setattr(bits_per_byte, "token_losses", losses)
    result = evaluate_bpb(None, batches, golden["token_bytes"])
    assert result.bpb == pytest.approx(float(RESULTS[used]["bpb"]), rel=1e-5)
    assert result.nats == pytest.approx(RESULTS[used]["total_nats"], rel=1e-5)
    assert result.bytes == RESULTS[used]["total_bytes"]


def test_bpb_counts_neither_special_tokens_nor_ignored_targets(monkeypatch):
    """Token 1 has no bytes, token 2 has three and token 3 has one. Counted targets cost 1.5 nats, the others 100."""
    targets = np.array([[2, 1, -1, 3, 2]], dtype=np.int32)
    costs = mx.array([[1.5, 100.0, 100.0, 1.5, 1.5]])
    batch = Rows(np.zeros_like(targets), targets)
    monkeypatch.setattr(bits_per_byte, "token_losses", lambda *_: costs)
    result = evaluate_bpb(None, [batch, batch], np.array([0, 0, 3, 1], dtype=np.int32))
    assert (result.tokens, result.bytes) == (6, 14)
    assert result.bpb == pytest.approx(9.0 / (math.log(2) * 14), rel=1e-12)


def test_bpb_of_a_uniform_model_is_log2_of_the_vocabulary_per_token():
    """With all weights 0, every logit is 0. Each of 64 tokens costs 6 bits and has 2 bytes."""
    model = FastGPT(GPTConfig(sequence_len=16, vocab_size=64, n_layer=1, n_head=1, n_kv_head=1, n_embd=32))
    model.set_parameters({name: mx.zeros_like(value) for name, value in model.named_parameters().items()})
    rows = np.random.default_rng(0).integers(0, 64, size=(3, 17)).astype(np.int32)
    result = evaluate_bpb(model, [Rows(rows[:, :-1], rows[:, 1:])], np.full(64, 2, dtype=np.int32))
    assert result.bpb == pytest.approx(3.0, rel=1e-6)
    assert result.tokens == 48
