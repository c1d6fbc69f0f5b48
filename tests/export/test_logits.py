"""Exported models give our logits in mlx-lm and in transformers, in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from nanochat.export.folder import write_export
from nanochat.model.gpt import GPT
from nanochat.tokenizer import bpe

pytestmark = pytest.mark.export

HERE = Path(__file__).parent
TOLERANCE = 1e-5  # of the largest logit; float32 sums in another order differ by 2e-6


@pytest.mark.parametrize("form", ["mlx", "hf"])
@pytest.mark.parametrize("architecture", ["seed", "current", "portable"])
def test_exported_model_gives_our_logits(tmp_path, make_random_model, architecture, form):
    """Two rows far beyond the window, without a cache and with it: prompt and tokens, chunks, and token by token.

    `portable` is loaded without code from the folder.
    """
    context, length = (1024, 400) if architecture == "current" else (64, 64)
    model = make_random_model(architecture, sequence_len=context, vocab_size=300, make_model=GPT)
    assert architecture == "portable" or min(model.config.windows) < length // 1.5
    rows = np.random.default_rng(0).integers(0, 300, (2, length))
    expected = np.array(model(mx.array(rows)))
    chunks = [[], [length - 10, *[1] * 10], [40, 1, 1, length - 42], [1] * length]
    (tmp_path / "model").mkdir()
    write_export(tmp_path / "model", model, make_tokenizer(), form)
    for sizes, logits in zip(chunks, compute(tmp_path, rows, form, chunks), strict=True):
        error = np.abs(logits - expected).max() / np.abs(expected).max()
        assert error < TOLERANCE, f"chunks {sizes}: {error}"


def make_tokenizer() -> bpe.Tokenizer:
    return bpe.train(["the cat sat on the mat"], vocab_size=280, max_chars=99, max_document_chars=99)


def compute(folder: Path, rows: np.ndarray, form: str, chunks: list[list[int]]) -> list[np.ndarray]:
    np.save(folder / "tokens.npy", rows)
    arguments = [folder / "model", folder / "tokens.npy", json.dumps(chunks), folder / "logits.npz"]
    command = [sys.executable, HERE / f"{form}_logits.py", *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "logits.npz") as results:
        return [results[name] for name in results.files]
