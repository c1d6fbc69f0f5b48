from __future__ import annotations

import numpy as np
import pytest

from nanochat.data.documents import DocumentStream
from nanochat.data.loaders.batches import BatchLoader
from nanochat.data.loaders.document_rows import DocumentRows
from nanochat.data.mixture import Mixture
from nanochat.errors import StageError

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


def assert_same_batches(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a.inputs, b.inputs)
        np.testing.assert_array_equal(a.targets, b.targets)


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


@pytest.mark.parametrize("n", [0, 1, 5, 17, 33, 60])
def test_document_loader_resumes_with_the_batches_of_one_that_never_stopped(make, n):
    """The states are taken with documents in the buffer, also after the end of both sources' first epoch."""
    uninterrupted = make()
    expected = next_batches(uninterrupted, 70)
    assert uninterrupted.state.epoch >= 1
    first = make()
    assert_same_batches(next_batches(first, n), expected[:n])
    second = make()
    second.load_state_dict(first.state_dict())
    assert_same_batches(next_batches(second, 70 - n), expected[n:])
    assert second.state.stats == uninterrupted.state.stats
    assert second.state.epoch == uninterrupted.state.epoch


def test_document_loader_returns_to_an_earlier_state(make):
    loader = make()
    next_batches(loader, 4)
    state = loader.state_dict()
    expected = next_batches(loader, 6)
    loader.load_state_dict(state)
    assert_same_batches(next_batches(loader, 6), expected)


def test_document_rows_state_consists_of_arrays_and_json(make):
    loader = make()
    next_batches(loader, 3)
    state = loader.state_dict()
    assert {key for key, value in state.items() if isinstance(value, np.ndarray)} == {"buffer_tokens", "buffer_lengths"}
    assert state["buffer_lengths"].sum() == len(state["buffer_tokens"])
    assert state["placed_tokens"] == 3 * 3 * 21


@pytest.mark.parametrize("world_size", [2, 3])
def test_document_loader_deals_the_rows_of_one_process_to_the_ranks(make, world_size):
    rows = np.concatenate([batch.inputs for batch in next_batches(make(rows_per_batch=3 * world_size), 4)])
    states = []
    for rank in range(world_size):
        loader = make(rank=rank, world_size=world_size)
        batches = next_batches(loader, 4)
        assert all(batch.elsewhere_tokens == 3 * (world_size - 1) * batch.targets.shape[1] for batch in batches)
        own_rows = np.concatenate([batch.inputs for batch in batches])
        np.testing.assert_array_equal(own_rows, rows[rank::world_size])
        states.append(loader.state_dict())
    for state in states[1:]:
        np.testing.assert_array_equal(state["buffer_tokens"], states[0]["buffer_tokens"])
        assert state["position"] == states[0]["position"]


@pytest.mark.parametrize(("world_size", "ranks_later"), [(2, 2), (3, 3), (2, 1), (1, 3)])
@pytest.mark.parametrize("n", [3, 8])
def test_document_loader_resumes_on_any_number_of_ranks(make, n, world_size, ranks_later):
    """The last rank's state is taken with documents in the buffer. It describes the sequence that all ranks share."""
    step = 6
    whole = make(rows_per_batch=step)
    expected = np.concatenate([batch.targets for batch in next_batches(whole, 14)])
    first = make(rows_per_batch=step // world_size, rank=world_size - 1, world_size=world_size)
    next_batches(first, n)
    state = first.state_dict()
    rows = np.full((step * (14 - n), 20), -2, dtype=np.int32)
    for rank in range(ranks_later):
        later = make(rows_per_batch=step // ranks_later, rank=rank, world_size=ranks_later)
        later.load_state_dict(state)
        rows[rank::ranks_later] = np.concatenate([batch.targets for batch in next_batches(later, 14 - n)])
        assert later.state.stats == whole.state.stats
    np.testing.assert_array_equal(rows, expected[step * n :])


def test_batch_loader_raises_a_source_s_error_when_its_batch_is_due(files, base, byte_tokenizer):
    files.jsonl("a.jsonl", [{"text": f"{i} abcdefghijkl"} for i in range(400)])
    with (files.folder / "a.jsonl").open("a") as file:
        file.write("broken\n")
    stream = DocumentStream(files.source("a.jsonl"), "train", base=base)
    rows = DocumentRows([(stream, 1.0)], byte_tokenizer, sequence_len=30, buffer_documents=8)
    loader = BatchLoader(rows, rows_per_batch=2, pad_id=1)
    with pytest.raises(StageError, match=r"a\.jsonl:401: not JSON"):
        next_batches(loader, 400)
    with pytest.raises(StageError, match=r"a\.jsonl:401: not JSON"):
        loader.next()


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
