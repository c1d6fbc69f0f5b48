"""A model folder restores the model and the tokenizer, and damaged folders give clear errors."""

from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest

from nanochat.checkpoint.model_folder import load_model, load_tokenizer, save_model
from nanochat.errors import PreflightError
from nanochat.model.config import GPTConfig
from nanochat.tokenizer import bpe

SHAPE = {"n_layer": 2, "n_head": 2, "n_kv_head": 1, "n_embd": 64, "window_pattern": "SL"}
CONFIG = GPTConfig(sequence_len=16, vocab_size=300, architecture="current", **SHAPE)


@pytest.fixture(scope="module")
def model(make_random_model):
    return make_random_model("current", sequence_len=16, vocab_size=300, **SHAPE)


def small_tokenizer():
    return bpe.train(["the cat sat on the mat. " * 20] * 5, vocab_size=300, max_chars=10_000, max_document_chars=1000)


def test_load_model_restores_model_and_tokenizer_exactly(model, tmp_path):
    tokenizer = small_tokenizer()
    save_model(tmp_path / "model", model, tokenizer)
    loaded = load_model(tmp_path / "model")
    assert loaded.config == CONFIG
    for name, value in model.named_parameters().items():
        np.testing.assert_array_equal(np.array(value), np.array(loaded.named_parameters()[name]), err_msg=name)
    text = "the mat, über"
    assert load_tokenizer(tmp_path / "model").encode(text) == tokenizer.encode(text)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_load_model_computes_in_the_dtype(model, tmp_path):
    save_model(tmp_path / "model", model, None)
    assert load_model(tmp_path / "model", mx.bfloat16).hidden(mx.array([[1, 2]])).dtype == mx.bfloat16
    assert load_model(tmp_path / "model").hidden(mx.array([[1, 2]])).dtype == mx.float32


def test_load_model_names_the_missing_file(model, tmp_path):
    with pytest.raises(PreflightError, match=r"config\.json is missing"):
        load_model(tmp_path)
    save_model(tmp_path / "model", model, None)
    with pytest.raises(PreflightError, match=r"tokenizer\.model is missing"):
        load_tokenizer(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(PreflightError, match=r"model\.safetensors is missing"):
        load_model(tmp_path / "model")


def rewrite(**changes):
    def change(folder):
        described = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**described, **changes}))

    return change


WRONG = {
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
    "another format": (rewrite(format=7), "format 7"),
    "an unknown field": (rewrite(model={"n_lair": 3}), "n_lair"),
    "another shape": (rewrite(model={**CONFIG.to_dict(), "n_layer": 3}), "weights are not those"),
    "broken weights": (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 100), "cannot be read"),
}


@pytest.mark.parametrize(("damage", "message"), WRONG.values(), ids=WRONG.keys())
def test_load_model_names_a_broken_folder(model, tmp_path, damage, message):
    save_model(tmp_path / "model", model, None)
    damage(tmp_path / "model")
    with pytest.raises(PreflightError, match=message) as caught:
        load_model(tmp_path / "model")
    assert str(tmp_path / "model") in str(caught.value)
