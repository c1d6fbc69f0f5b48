"""Rows of different lengths, which mlx-lm pads on the right and transformers on the left, are answered as alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from nanochat.export.folder import write_export
from nanochat.model.gpt import GPT
from nanochat.tokenizer import bpe

pytestmark = pytest.mark.export

MLX = """
import sys
from mlx_lm import load, batch_generate
model, tokenizer = load(sys.argv[1], trust_remote_code=True)
prompts = [[1, *range(20, 20 + n)] for n in (3, 150, 40)]
together = batch_generate(model, tokenizer, prompts, max_tokens=12).texts
alone = [batch_generate(model, tokenizer, [p], max_tokens=12).texts[0] for p in prompts]
assert together == alone, together
"""
HF = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
prompts = [[1, *range(20, 20 + n)] for n in (3, 150, 40)]
longest = max(map(len, prompts))
rows = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
options = dict(do_sample=False, max_new_tokens=12, eos_token_id=None)
together = model.generate(rows, attention_mask=mask, **options)[:, longest:].tolist()
for p, row in zip(prompts, together):
    alone = model.generate(torch.tensor([p]), attention_mask=torch.ones(1, len(p)).long(), **options)
    assert alone[0, len(p):].tolist() == row
"""


@pytest.mark.parametrize(("form", "program"), [("mlx", MLX), ("hf", HF)])
def test_padding_of_a_batch_changes_no_answer(tmp_path: Path, make_random_model, form, program):
    """`current` has a smear, which must not read the padding, and windows of 128."""
    tokenizer = bpe.train(["the cat sat on the mat"], vocab_size=280, max_chars=99, max_document_chars=99)
    model = make_random_model("current", sequence_len=512, vocab_size=tokenizer.vocab_size, make_model=GPT)
    model.smear_lambda = mx.array([6.0])  # so that a wrong previous token changes the first tokens of an answer
    folder = tmp_path / "model"
    folder.mkdir()
    write_export(folder, model, tokenizer, form)
    done = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
