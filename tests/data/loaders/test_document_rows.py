from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data.documents import DocumentStream, single_pass
from nanochat.data.loaders.batches import BatchLoader
from nanochat.data.loaders.document_rows import DocumentRows
from nanochat.data.loaders.stream_mixture import Mixture

TEXTS = [f"<{i}>" + "abcdefg"[: i % 8] * (1 + i % 5) for i in range(300)]


@pytest.fixture
def make(files, base, byte_tokenizer):
    """Returns a function that makes loaders of two weighted sources, and closes them after the test."""
    files.parquet("a.parquet", TEXTS[:200], row_group_size=64)
    files.jsonl("b.jsonl", [{"text": text} for text in TEXTS[200:]])
    loaders = []

    def make(rule="keep", **changes):
        streams = [
            (DocumentStream(files.source("a.parquet"), "train", base=base), 2.0),
            (DocumentStream(files.source("b.jsonl"), "train", base=base), 1.0),
        ]
        rows = DocumentRows(streams, byte_tokenizer, sequence_len=20, buffer_documents=30, long_documents=rule)
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


@pytest.mark.parametrize("rule", ["keep", "crop"])
def test_document_rows_consist_of_documents_that_each_start_with_bos(make, byte_tokenizer, rule):
    for batch in next_batches(make(rule), 40):
        for row in np.concatenate([batch.inputs, batch.targets[:, -1:]], axis=1):
            parts = np.split(row, np.flatnonzero(row == 1))
            assert len(parts[0]) == 0
            texts = [byte_tokenizer.decode(part[1:]) for part in parts[1:]]
            assert all(text in TEXTS or (rule == "keep" and is_end(text)) for text in texts[:-1])
            assert any(texts[-1] in text if rule == "keep" else text.startswith(texts[-1]) for text in TEXTS)


def is_end(part):
    return any(text.endswith(part) for text in TEXTS)


def test_document_rows_state_consists_of_arrays_and_json(make):
    loader = make()
    next_batches(loader, 3)
    state = loader.state_dict()
    arrays = {key: value for key, value in state.items() if isinstance(value, np.ndarray)}
    assert set(arrays) == {"buffer_tokens", "buffer_lengths", "buffer_streams"}
    assert json.loads(json.dumps({key: value for key, value in state.items() if key not in arrays}))
    assert state["buffer_lengths"].sum() == len(state["buffer_tokens"])
    assert state["stats"]["placed_tokens"] == 3 * 3 * 21


@pytest.mark.parametrize("rule", ["keep", "crop"])
def test_document_rows_account_for_every_token_read(make, files, base, rule):
    """A token is in a row, in the buffer, or counted as cropped. A tail has one more, its BOS."""
    loader = make(rule, rows_per_batch=1)
    next_batches(loader, 25)
    state, stats = loader.state_dict(), loader.state.stats
    streams = [DocumentStream(files.source(name), "train", base=base) for name in ("a.parquet", "b.jsonl")]
    mixture = Mixture(streams, [2.0, 1.0])
    tokens_read = sum(len(mixture.draw().document) + 1 for _ in range(sum(state["position"]["counts"])))
    waiting = len(state["buffer_tokens"]) + len(state["buffer_lengths"])
    assert stats.placed_tokens + stats.cropped_tokens + waiting == tokens_read + stats.tail_bos_tokens
    assert (0 < stats.cropped_frac < 1) if rule == "crop" else (stats.cropped_frac == 0 and stats.tail_bos_tokens > 0)


def test_document_rows_of_ten_books_have_every_training_token_in_the_first_epoch(files, base, byte_tokenizer):
    """Each book is cut into documents of 16,000 characters, and a document is as long as 250 rows."""
    for i in range(10):
        files.text(f"{i}.txt", "".join(f"Line {j} of book {i} says {i * j}.\n" for j in range(1000)))
    source = files.source("*.txt", validation_hash_frac=0.02)
    texts = list(single_pass(source, "train", base=base))
    stream = DocumentStream(source, "train", base=base)
    rows = DocumentRows([(stream, 1.0)], byte_tokenizer, sequence_len=64, buffer_documents=1000, long_documents="keep")
    targets = []
    while rows.state().epoch == 0:
        targets += [token for token in rows.next_row().targets.tolist() if token != byte_tokenizer.bos_id]
    expected = Counter(byte + 10 for text in texts for byte in text.encode())
    assert Counter(targets[: expected.total()]) == expected
    stats, next_epoch = rows.state().stats, len(targets) - expected.total()
    bos_tokens = stats.placed_tokens - len(targets)
    assert 0 <= next_epoch < 64 and stats.cropped_frac == 0
    assert len(texts) <= bos_tokens - stats.tail_bos_tokens <= len(texts) + 2


class Letters:
    """A stream of documents in which each token is the document's number, plus 1,000 for each epoch before."""

    def __init__(self, lengths, first, count=0):
        self.lengths, self.first, self.count = lengths, first, count
        self.epoch = 0

    def __next__(self):
        self.epoch, i = divmod(self.count, len(self.lengths))
        self.count += 1
        return np.full(self.lengths[i], 1000 * self.epoch + self.first + i, dtype=np.int32)

    def position(self):
        return {"count": self.count}

    def reopened(self, start):
        return Letters(self.lengths, self.first, start["count"])


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=12), min_size=1, max_size=2),
    sequence_len=st.integers(1, 20),
    buffer_documents=st.integers(1, 40),
)
def test_document_rows_place_every_token_of_an_epoch_before_the_next_one(lengths, sequence_len, buffer_documents):
    """Of each stream, the tokens behind BOS are in order of their epochs, and all of an epoch's are there.

    They are targets: a row's first token, which is not a target, is always BOS.
    """
    streams = [(Letters(of_stream, 100 * (i + 1)), 1.0 + i) for i, of_stream in enumerate(lengths)]
    rows = DocumentRows(
        streams,
        SimpleNamespace(bos_id=0),
        sequence_len=sequence_len,
        buffer_documents=buffer_documents,
        long_documents="keep",
    )
    targets, state = [], rows.state()
    while state.epoch < 2:
        row = rows.next_row()
        assert row.inputs[0] == 0
        targets += row.targets.tolist()
        state = rows.state()
        rows.load_state_dict(state.to_dict())
    for i, of_stream in enumerate(lengths):
        seen = [token for token in targets if token % 1000 // 100 == i + 1]
        for epoch in range(2):
            expected = Counter({1000 * epoch + 100 * (i + 1) + j: length for j, length in enumerate(of_stream)})
            size = sum(of_stream)
            assert Counter(seen[epoch * size : (epoch + 1) * size]) == expected
    assert state.stats.cropped_tokens == 0
    assert state.stats.placed_tokens == len(targets) // sequence_len * (sequence_len + 1)
