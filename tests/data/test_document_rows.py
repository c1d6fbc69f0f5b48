from __future__ import annotations

import numpy as np
import pytest

from nanochat.data.documents import DocumentStream
from nanochat.data.loaders.batches import BatchLoader
from nanochat.data.loaders.document_rows import DocumentRows
from nanochat.data.mixture import Mixture

TEXTS = [f"<{i}>" + "abcdefg"[: i % 8] * (1 + i % 5) for i in range(300)]


@pytest.fixture
def make(files, base, byte_tokenizer):
    """Returns a function that makes loaders of two weighted sources, and closes them after the test."""
    files.parquet("a.parquet", TEXTS[:200], row_group_size=64)
    files.jsonl("b.jsonl", [{"text": text} for text in TEXTS[200:]])
    loaders = []

    def make(**changes):
        streams = [
            (DocumentStream(files.source("a.parquet"), "train", base=base), 2.0),
            (DocumentStream(files.source("b.jsonl"), "train", base=base), 1.0),
        ]
        rows = DocumentRows(streams, byte_tokenizer, sequence_len=20, buffer_documents=30)
        loaders.append(BatchLoader(rows, **{"rows_per_batch": 3, "pad_id": byte_tokenizer.bos_id, **changes}))
        return loaders[-1]

    yield make
    for loader in loaders:
        loader.close()


def next_batches(loader, count):
    return [loader.next() for _ in range(count)]


def test_document_rows_have_the_inputs_one_step_later_as_targets(make):
    batch = make().next()
    assert batch.inputs.shape == batch.targets.shape == (3, 20)
    assert batch.inputs.dtype == batch.targets.dtype == np.int32
    np.testing.assert_array_equal(batch.inputs[:, 1:], batch.targets[:, :-1])


def test_document_rows_consist_of_documents_that_each_start_with_bos(make, byte_tokenizer):
    for batch in next_batches(make(), 40):
        for row in np.concatenate([batch.inputs, batch.targets[:, -1:]], axis=1):
            parts = np.split(row, np.flatnonzero(row == 1))
            assert len(parts[0]) == 0
            texts = [byte_tokenizer.decode(part[1:]) for part in parts[1:]]
            assert all(text in TEXTS for text in texts[:-1])
            assert any(text.startswith(texts[-1]) for text in TEXTS)


def test_document_rows_state_consists_of_arrays_and_json(make):
    loader = make()
    next_batches(loader, 3)
    state = loader.state_dict()
    assert {key for key, value in state.items() if isinstance(value, np.ndarray)} == {"buffer_tokens", "buffer_lengths"}
    assert state["buffer_lengths"].sum() == len(state["buffer_tokens"])
    assert state["placed_tokens"] == 3 * 3 * 21


def test_document_rows_account_for_every_token_read(make, files, base):
    """A token is in a row, in the buffer, or counted as cropped."""
    loader = make(rows_per_batch=1)
    next_batches(loader, 25)
    state, stats = loader.state_dict(), loader.state.stats
    streams = [DocumentStream(files.source(name), "train", base=base) for name in ("a.parquet", "b.jsonl")]
    mixture = Mixture(streams, [2.0, 1.0])
    tokens_read = sum(len(next(mixture)) + 1 for _ in range(sum(state["position"]["counts"])))
    assert stats.placed_tokens + stats.cropped_tokens + len(state["buffer_tokens"]) == tokens_read
    assert 0 < stats.cropped_frac < 1
