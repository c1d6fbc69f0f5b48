"""Rows of held-out text for measuring bits per byte."""

from __future__ import annotations

import numpy as np

from nanochat.data.documents import single_pass
from nanochat.stages.suites.held_out_text import held_out_batches
from nanochat.tokenizer import bpe


def test_held_out_rows_have_every_token_as_a_target_once_for_any_batch_size(documents, tmp_path):
    texts = list(single_pass(documents, "validation", base=tmp_path))
    tokenizer = bpe.train(texts, vocab_size=300, max_chars=100_000, max_document_chars=10_000)
    expected = [i for text in texts for i in (tokenizer.bos_id, *tokenizer.encode(text))]
    for rows_per_batch in (1, 3):
        sizes = {"sequence_len": 16, "max_tokens": 10**6, "rows_per_batch": rows_per_batch}
        batches = held_out_batches(documents, "validation", tokenizer, **sizes, base=tmp_path)
        inputs = np.concatenate([batch.inputs for batch in batches]).reshape(-1)
        targets = np.concatenate([batch.targets for batch in batches]).reshape(-1)
        assert targets[targets >= 0].tolist() == expected[1:]
        assert inputs[: len(expected) - 1].tolist() == expected[:-1]
        assert (targets[len(expected) - 1 :] == -1).all()
        assert len(targets) - len(expected) < 16
        assert all(len(batch.inputs) <= rows_per_batch for batch in batches)


def test_held_out_rows_end_after_max_tokens(documents, tmp_path):
    tokenizer = bpe.train(["a b c"] * 9, vocab_size=300, max_chars=1000, max_document_chars=1000)
    batches = held_out_batches(
        documents, "validation", tokenizer, sequence_len=16, max_tokens=40, rows_per_batch=2, base=tmp_path
    )
    assert [batch.inputs.shape for batch in batches] == [(2, 16), (1, 16)]
    assert all((batch.targets >= 0).all() for batch in batches)
