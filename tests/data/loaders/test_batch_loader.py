"""Tests of what loaders of documents and of conversations have in common: dealing rows to ranks, and resuming."""

from __future__ import annotations

import numpy as np
import pytest

from nanochat.data.documents import DocumentStream
from nanochat.data.loaders.batches import BatchLoader
from nanochat.data.loaders.conversation_rows import ConversationRows
from nanochat.data.loaders.document_rows import DocumentRows
from nanochat.errors import StageError

KINDS = ["keep", "crop", "conversations", "endless conversations"]
"""Documents under each rule for the long ones, and conversations."""
TEXTS = [f"<{i}>" + "abcdefg"[: i % 8] * (1 + i % 5) for i in range(300)]
# BOS, a question token (masked), and an answer of 1 to 9 tokens (supervised).
CONVERSATIONS = [
    ([1, 2, *range(100 * i + 10, 100 * i + 11 + i * 7 % 9)], [0, 0, *[1] * (1 + i * 7 % 9)]) for i in range(60)
]


@pytest.fixture
def make(files, base, byte_tokenizer):
    """Returns a function that makes loaders of each kind, and closes them after the test."""
    files.parquet("a.parquet", TEXTS[:200], row_group_size=64)
    files.jsonl("b.jsonl", [{"text": text} for text in TEXTS[200:]])
    loaders = []

    def make(kind, *, rows_per_batch=3, **ranks):
        if kind in ("keep", "crop"):
            names = ("a.parquet", "b.jsonl")
            streams = [DocumentStream(files.source(name), "train", base=base) for name in names]
            weighted = list(zip(streams, [2.0, 1.0], strict=True))
            rows = DocumentRows(weighted, byte_tokenizer, sequence_len=20, buffer_documents=30, long_documents=kind)
        else:
            epochs = 1.0 if kind == "conversations" else None
            sizes = {"sequence_len": 20, "buffer_conversations": 4}
            rows = ConversationRows(CONVERSATIONS, **sizes, pad_id=1, seed=3, epochs=epochs)
        loaders.append(BatchLoader(rows, rows_per_batch=rows_per_batch, pad_id=1, **ranks))
        return loaders[-1]

    yield make
    for loader in loaders:
        loader.close()


def take(loader, count):
    """Return the next batches, fewer if the data end."""
    batches = []
    for _ in range(count):
        try:
            batches.append(loader.next())
        except StopIteration:
            break
    return batches


def rows_of(batches):
    """Return inputs and targets of each row that is not masked."""
    pairs = [pair for batch in batches for pair in zip(batch.inputs, batch.targets, strict=True)]
    return [np.stack(pair).tolist() for pair in pairs if (pair[1] >= 0).any()]


def scored_tokens(batch):
    return int((batch.targets >= 0).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_batch_loader_resumes_with_the_batches_of_one_that_never_stopped(make, kind):
    """States are taken with items in the packing buffer, in the first epoch and after it."""
    uninterrupted = make(kind)
    expected = [rows_of([batch]) for batch in take(uninterrupted, 100)]
    for n in (0, 1, 5, 9, 33, 60, 74, 90):
        first, second = make(kind), make(kind)
        assert [rows_of([batch]) for batch in take(first, n)] == expected[:n]
        second.load_state_dict(first.state_dict())
        assert [rows_of([batch]) for batch in take(second, 100 - n)] == expected[n:], f"resumed after {n} batches"
        np.testing.assert_equal(second.state_dict(), uninterrupted.state_dict())
        assert second.state.stats == uninterrupted.state.stats
        if kind in ("keep", "crop"):
            assert second.state.epoch == uninterrupted.state.epoch >= 1


@pytest.mark.parametrize("kind", KINDS)
def test_batch_loader_returns_to_an_earlier_state(make, kind):
    loader = make(kind)
    take(loader, 4)
    state = loader.state_dict()
    expected = rows_of(take(loader, 6))
    loader.load_state_dict(state)
    assert rows_of(take(loader, 6)) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world_size", [2, 3])
def test_batch_loader_deals_the_rows_of_one_process_to_the_ranks(make, kind, world_size):
    whole = take(make(kind, rows_per_batch=2 * world_size), 20)
    for rank in range(world_size):
        batches = take(make(kind, rows_per_batch=2, rank=rank, world_size=world_size), 20)
        assert [scored_tokens(batch) + batch.elsewhere_tokens for batch in batches] == [*map(scored_tokens, whole)]
        assert rows_of(batches) == rows_of(whole)[rank::world_size]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("world_size", "ranks_later"), [(2, 2), (3, 3), (2, 1), (1, 3)])
@pytest.mark.parametrize("n", [2, 3])
def test_batch_loader_resumes_on_any_number_of_ranks(make, kind, n, world_size, ranks_later):
    """The last rank's state describes the sequence of rows that all ranks share."""
    whole = take(make(kind, rows_per_batch=6), 14)
    first = make(kind, rows_per_batch=6 // world_size, rank=world_size - 1, world_size=world_size)
    take(first, n)
    for rank in range(ranks_later):
        later = make(kind, rows_per_batch=6 // ranks_later, rank=rank, world_size=ranks_later)
        later.load_state_dict(first.state_dict())
        batches = take(later, 14 - n)
        assert len(batches) == len(whole) - n > 0
        assert rows_of(batches) == rows_of(whole[n:])[rank::ranks_later]


def test_batch_loader_gives_a_rank_without_rows_a_masked_one(make):
    """The last batch has fewer rows than there are ranks, but every rank must take the step."""
    world_size = len(rows_of(take(make("conversations"), 70))) + 1
    batches = [take(make("conversations", rank=rank, world_size=world_size), 2) for rank in (0, world_size - 1)]
    assert [len(of_rank) for of_rank in batches] == [1, 1]
    (masked,) = batches[1]
    assert masked.inputs.tolist() == [[1] * 20] and masked.targets.tolist() == [[-1] * 20]


def test_batch_loader_raises_a_source_s_error_when_its_batch_is_due(files, base, byte_tokenizer):
    files.jsonl("a.jsonl", [{"text": f"{i} abcdefghijkl"} for i in range(400)])
    with (files.folder / "a.jsonl").open("a") as file:
        file.write("broken\n" * 11)
    stream = DocumentStream(files.source("a.jsonl"), "train", base=base)
    rows = DocumentRows([(stream, 1.0)], byte_tokenizer, sequence_len=30, buffer_documents=8, long_documents="keep")
    loader = BatchLoader(rows, rows_per_batch=2, pad_id=1)
    for _ in range(2):
        with pytest.raises(StageError, match=r"11 bad rows.* .*a\.jsonl:401: not JSON"):
            take(loader, 400)
